# The smallest app that obeys the rules: listens on $PORT, answers /health, ends when it is asked to.
require "socket"

GREETING = ENV.fetch("GREETING", "Hello from Berth!")
ANSWERS = {
  "/" => [200, "#{GREETING} This is Ruby #{RUBY_VERSION}.\n"],
  "/health" => [200, "ok\n"]
}.freeze

$stdout.sync = true
server = TCPServer.new("0.0.0.0", Integer(ENV.fetch("PORT", "8080")))
Signal.trap("TERM") { exit }
puts "listening on #{server.addr[1]}"

loop do
  Thread.start(server.accept) do |client|
    path = client.gets.to_s.split[1]
    line = client.gets until line.to_s == "\r\n" || client.eof?
    status, body = ANSWERS.fetch(path, [404, "not found\n"])
    client.write "HTTP/1.1 #{status} #{status == 200 ? 'OK' : 'Not Found'}\r\n" \
                 "Content-Type: text/plain; charset=utf-8\r\nContent-Length: #{body.bytesize}\r\n" \
                 "Connection: close\r\n\r\n#{body}"
  ensure
    client.close
  end
end
