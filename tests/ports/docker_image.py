"""A tiny image for tests on the real engine: Perl, which the base image has, answering HTTP on $PORT."""

import io
import tarfile

from docker import APIClient

IMAGE = "berth-test/answer:1"
BASE = "berth/base:bookworm"

# Prints a line at start; answers every request with its host name and $PORT; keeps connections open.
_SERVER = r"""
use strict; use IO::Socket::INET; $| = 1;
$SIG{CHLD} = 'IGNORE';
# Before anybody can connect: who sees it listen may stop it.
$SIG{TERM} = sub { print "asked to stop\n"; exit 0 };
my $listener = IO::Socket::INET->new(LocalPort => $ENV{PORT}, Listen => 511, ReuseAddr => 1) or die $!;
print "listening on $ENV{PORT}\n";
my $host = `hostname`; chomp $host;
while (1) {
    my $client = $listener->accept or next;
    if (fork) { close $client; next }
    $SIG{TERM} = 'DEFAULT';
    my $head = '';
    while (sysread $client, my $part, 4096) {
        $head .= $part;
        while ($head =~ s/^(.*?)\r\n\r\n//s) {
            my $body = "$host $ENV{PORT}\n";
            syswrite $client, "HTTP/1.1 200 OK\r\nContent-Length: " . length($body) . "\r\n\r\n$body";
        }
    }
    exit 0;
}
"""
_DOCKERFILE = f'FROM {BASE}\nCOPY answer.pl /answer.pl\nCMD ["perl", "/answer.pl"]\n'


def ensure(client: APIClient) -> str:
    """Built once; a second run finds it."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, text in (("Dockerfile", _DOCKERFILE), ("answer.pl", _SERVER)):
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    lines = client.build(
        fileobj=io.BytesIO(archive.getvalue()), custom_context=True, tag=IMAGE, rm=True, decode=True
    )
    for line in lines:
        assert "error" not in line, line
    return IMAGE
