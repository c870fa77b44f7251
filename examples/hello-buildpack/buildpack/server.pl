#!/usr/bin/perl
use strict;
use warnings;
use IO::Socket::INET;

open(my $file, '<', $ARGV[0]) or die "$ARGV[0]: $!\n";
chomp(my $greeting = <$file>);
my $body = "$greeting, by $ENV{GREETED_BY}, as $< in $ENV{HOME}\n";

my $server = IO::Socket::INET->new(LocalPort => $ENV{PORT} || 8080, Listen => 50, ReuseAddr => 1)
    or die "cannot listen: $!\n";
while (my $client = $server->accept) {
    while (my $line = <$client>) { last if $line =~ /^\r?\n$/ }
    print $client "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: ", length($body),
        "\r\nConnection: close\r\n\r\n$body";
    close $client;
}
