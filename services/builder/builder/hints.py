"""What went wrong, in words for the one who can mend it; and whether that is the customer or us. PURE."""

import re
from collections.abc import Iterable

# (sign in the message or in the last lines, hint). The first that fits is given: causes before consequences.
_HINTS: tuple[tuple[str, str], ...] = (
    (
        r"returned a non-zero code: 137|exit code 137|out of memory|Cannot allocate memory|MemoryError",
        "The build ran out of memory. Install fewer things at once, or choose a plan with more memory.",
    ),
    (
        r"No space left on device",
        "The disk was full. Leave large files out of the source, and remove caches in the same RUN step.",
    ),
    (
        r"certificate verify failed|CERTIFICATE_VERIFY_FAILED|server certificate verification failed",
        "A server's certificate is not trusted. Where TLS is inspected, builds must be told the CA.",
    ),
    (
        r"Temporary failure in name resolution|Could not resolve|Network is unreachable|Connection timed out"
        r"|Max retries exceeded|ConnectTimeoutError|Failed to establish a new connection",
        "A server could not be reached during the build. Builds reach the internet, but no private network.",
    ),
    (
        r"No matching distribution found for |Could not find a version that satisfies the requirement",
        "pip does not find a package in this version. Check its name and version in requirements.txt, and "
        "that it exists for this version of Python.",
    ),
    (
        r"these package versions have conflicting dependencies|ResolutionImpossible",
        "Two of the requirements ask for different versions of the same package. Loosen one of them.",
    ),
    (
        r"THESE PACKAGES DO NOT MATCH THE HASHES",
        "A downloaded package is not the one requirements.txt has the hash of. Lock the requirements anew.",
    ),
    (
        r"error: command '\S*(gcc|cc|g\+\+|clang)\S*' failed|gcc: not found|Unable to find .*(gcc|compiler)"
        r"|pg_config executable not found|fatal error: \S+\.h: No such file",
        "A package has to be compiled and a tool or header for it is missing. Use a version with a wheel for "
        "this Python, or a Dockerfile that installs what it needs.",
    ),
    (
        r"the --(mount|chmod|link|network|security) option requires BuildKit|requires BuildKit"
        r"|heredoc|failed to parse platform",
        "The Dockerfile uses a feature of BuildKit, which builds here lack. Write the step without it.",
    ),
    (
        r"[Dd]ockerfile parse error|unknown instruction|failed to parse [Dd]ockerfile"
        r"|requires (at least|exactly) ",
        "The Dockerfile has a mistake in the line named above.",
    ),
    (
        r"COPY failed|ADD failed|file not found in build context|no such file or directory.*build",
        "A file that COPY names is not in the source. Check its path, the .dockerignore and the upload.",
    ),
    (
        r"pull access denied|manifest unknown|manifest for \S+ not found|repository does not exist",
        "The base image does not exist under this name and tag, or is not public.",
    ),
    (
        r"could not read Username|Authentication failed|Repository not found|returned error: 40[134]",
        "The repository does not exist or is private. Check its address.",
    ),
    (
        r"couldn't find remote ref|[Nn]ot our ref|upload-pack: not our ref",
        "The repository has no such branch, tag or commit.",
    ),
    (
        r"returned error: 30\d|unable to update url base from redirection",
        "The repository has moved. Use its new address.",
    ),
    (
        r"[Pp]ermission denied|Operation not permitted|EACCES",
        "A step was not allowed to do something. Scripts need `chmod +x`; only root writes what is root's.",
    ),
    (
        r"fork: (retry: )?Resource temporarily unavailable|Cannot fork|can't start new thread",
        "A step started too many processes. Build with fewer jobs at once, such as `make -j2`.",
    ),
    (
        r"exit code 127|command not found|executable file not found|: not found$",
        "A step calls a program the image does not have. Install it in an earlier step.",
    ),
)
_COMPILED = tuple((re.compile(pattern), hint) for pattern, hint in _HINTS)
_LONGEST = 2000

_OURS = re.compile(
    r"[Nn]o space left on device|dial tcp|i/o timeout|TLS handshake timeout|toomanyrequests|Too Many Requests"
    r"|connection (refused|reset)|unexpected EOF|context canceled|network \S+ not found|cgroup"
    r"|containerd|driver failed|layer does not exist|received unexpected HTTP status: 5",
)


def hint_for(message: str, last_lines: Iterable[str]) -> str | None:
    """From the message itself where it says enough, else from the end of the log."""
    for texts in ([message], list(last_lines)):
        for pattern, hint in _COMPILED:
            if any(pattern.search(text[:_LONGEST]) for text in texts):
                return hint
    return None


def is_ours(message: str) -> bool:
    """An engine's error the customer has no part in: worth another try."""
    return _OURS.search(message[:_LONGEST]) is not None
