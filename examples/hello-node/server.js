// The smallest app that obeys the rules: listens on $PORT, answers /health, ends when it is asked to.
const fs = require("fs");
const http = require("http");
const mustache = require("mustache");

const template = fs.readFileSync("dist/greeting.txt", "utf8");
const port = process.env.PORT || 8080;

const server = http.createServer((request, response) => {
  response.setHeader("Content-Type", "text/plain; charset=utf-8");
  if (request.url === "/health") {
    response.end("ok\n");
  } else if (request.url === "/") {
    response.end(mustache.render(template, { greeting: process.env.GREETING || "Hello from Berth!" }));
  } else {
    response.statusCode = 404;
    response.end("not found\n");
  }
});

server.listen(port, "0.0.0.0", () => console.log(`listening on ${port}`));
process.on("SIGTERM", () => server.close(() => process.exit(0)));
