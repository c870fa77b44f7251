"""What went wrong, in words for the one who can mend it; and whether that is the customer or us. PURE."""

import re
from collections.abc import Iterable

_NO_PROGRAM = "A step calls a program the image does not have. Install it in an earlier step."
# (sign in the message or in the last lines, hint). The first that fits is given: causes before consequences,
# and what one tool says before what many do.
_HINTS: tuple[tuple[str, str], ...] = (
    # --- memory, disk, the network ---------------------------------------------------------------------
    (
        r"JavaScript heap out of memory|Reached heap limit",
        "Node.js ran out of memory. Set NODE_OPTIONS=--max-old-space-size for the build to less than its "
        "memory, bundle less at once, or choose a plan with more memory.",
    ),
    (
        r"returned a non-zero code: 137|exit code 137|[Oo]ut of memory|Cannot allocate memory|MemoryError"
        r"|OutOfMemoryError|signal: killed|Allowed memory size of \d+ bytes exhausted",
        "The build ran out of memory. Install fewer things at once, or choose a plan with more memory.",
    ),
    (
        r"[Nn]o space left on device|ENOSPC|Disk quota exceeded",
        "The disk was full. Leave large files out of the source, and remove caches in the same RUN step.",
    ),
    (
        r"certificate verify failed|CERTIFICATE_VERIFY_FAILED|server certificate verification failed"
        r"|SELF_SIGNED_CERT_IN_CHAIN|UNABLE_TO_(GET|VERIFY)|unable to find valid certification path"
        r"|x509: certificate signed by unknown authority|SSL certificate problem",
        "A server's certificate is not trusted. Where TLS is inspected, builds must be told the CA.",
    ),
    (
        r"Temporary failure in name resolution|Could not resolve (host|proxy)|Network is unreachable"
        r"|Connection timed out|Max retries exceeded|ConnectTimeoutError|ENOTFOUND|ETIMEDOUT|ECONNREFUSED"
        r"|EAI_AGAIN|Failed to establish a new connection|dial tcp: lookup|UnknownHostException",
        "A server could not be reached during the build. Builds reach the internet, but no private network.",
    ),
    (
        r"npm (ERR!|error) (code )?E40[13]\b|401 Unauthorized|403 Forbidden|HTTP error 40[13]",
        "A registry or server wants to know who asks. Give the build its token as a variable of the scope "
        "`build`, and name it in the tool's configuration.",
    ),
    # --- Python ----------------------------------------------------------------------------------------
    (
        r"No matching distribution found for |Could not find a version that satisfies the requirement"
        r"|was not found in the package registry",
        "pip does not find a package in this version. Check its name and version in requirements.txt, and "
        "that it exists for this version of Python.",
    ),
    (
        r"these package versions have conflicting dependencies|ResolutionImpossible"
        r"|No solution found when resolving dependencies",
        "Two of the requirements ask for different versions of the same package. Loosen one of them.",
    ),
    (
        r"THESE PACKAGES DO NOT MATCH THE HASHES",
        "A downloaded package is not the one requirements.txt has the hash of. Lock the requirements anew.",
    ),
    (
        r"requires a different Python|requires-python|Requires-Python|requires Python .* but",
        "A package or the app itself asks for another version of Python. Name that version in the app's "
        "runtime or in runtime.txt, or choose a package that fits this one.",
    ),
    (
        r"poetry\.lock (is not up to date|was last generated)|pyproject\.toml changed significantly"
        r"|The lockfile at `uv\.lock` needs to be updated|Pipfile\.lock .*out of date",
        "The lock file does not fit the file that names the dependencies. Lock again and commit both.",
    ),
    (
        r"error: command '\S*(gcc|cc|g\+\+|clang)\S*' failed|(gcc|g\+\+|cc|make): (command )?not found"
        r"|Unable to find .*(gcc|compiler)|pg_config executable not found|mysql_config.* not found"
        r"|fatal error: \S+\.h: No such file|gyp ERR! (stack|find)|Failed to build gem native extension",
        "A package has to be compiled and a tool or header for it is missing. Use a version with a wheel or "
        "binary for this runtime, or a Dockerfile that installs what it needs.",
    ),
    # --- Node.js -----------------------------------------------------------------------------------------
    (
        r"`npm ci` can only install|package\.json and package-lock\.json.* (are not )?in sync"
        r"|lock file's .* does not satisfy|ERR_PNPM_OUTDATED_LOCKFILE|lockfile needs to be updated"
        r"|YN0028",
        "The lock file does not fit package.json. Install on your machine, and commit both files.",
    ),
    (
        r"ERESOLVE|unable to resolve dependency tree|Conflicting peer dependency",
        "npm finds versions that exclude each other. Update the package it names, or put "
        "`legacy-peer-deps=true` into .npmrc.",
    ),
    (
        r"npm (ERR!|error) (code )?(E404|ETARGET)|No matching version found for|ERR_PNPM_FETCH_404"
        r"|Couldn't find (any versions|package)",
        "The registry has no such package, or not in this version. Check its name in package.json; a "
        "private one needs a token.",
    ),
    (
        r"[Mm]issing script:|ERR_PNPM_NO_SCRIPT|Couldn't find a script named|error Command .* not found",
        "package.json has no script of this name. Add it under `scripts`, or change the app's build command.",
    ),
    (
        r"EBADENGINE|The engine \"\w+\" is incompatible|Unsupported engine|ERR_PNPM_UNSUPPORTED_ENGINE",
        "A package asks for another version of Node.js. Name one under `engines` in package.json that the "
        "platform offers.",
    ),
    (
        r"Cannot find module|MODULE_NOT_FOUND|Module not found: Error|ERR_MODULE_NOT_FOUND"
        r"|Could not resolve \"|Rollup failed to resolve import",
        "A module that is imported is not installed, or its file is not in the source. Add it to the "
        "dependencies; mind upper and lower case in file names.",
    ),
    (
        r"\berror TS\d+:|Type error: |SyntaxError: ",
        "The code itself has an error: the log names file and line above.",
    ),
    (
        r"ModuleNotFoundError: No module named|ImportError: cannot import name",
        "A module that is imported is not installed. Add its package to the requirements.",
    ),
    # --- PHP, Ruby, Go, Java -----------------------------------------------------------------------------
    (
        r"the requested PHP extension \S+ is missing|requires (PHP extension )?ext-\S+",
        "composer misses a PHP extension. Choose a runtime that has it, or a Dockerfile that installs it.",
    ),
    (
        r"lock file is not up to date with the latest changes in composer\.json"
        r"|Your requirements could not be resolved to an installable set",
        "composer cannot satisfy composer.json with the lock file and this PHP. Run `composer update` on "
        "your machine with the same version of PHP, and commit both files.",
    ),
    (
        r"Your Ruby version is \S+, but your Gemfile specified",
        "The Gemfile asks for another version of Ruby. Name one in it that the platform offers.",
    ),
    (
        r"Your bundle only supports platforms|Add the current platform to the lockfile",
        "Gemfile.lock knows your machine alone. Run `bundle lock --add-platform x86_64-linux` and commit it.",
    ),
    (
        r"Could not find gem|Could not find \S+ in (any of the sources|locally installed gems)"
        r"|Bundler could not find compatible versions|The gemspecs for path gems changed"
        r"|dependencies in your gemfile changed|because the lockfile (is|can't be updated)",
        "bundler does not find what Gemfile and Gemfile.lock name. Run `bundle lock` and commit both.",
    ),
    (
        r"missing go\.sum entry|updates to go\.(mod|sum) needed|no required module provides package",
        "go.mod and go.sum do not name everything that is imported. Run `go mod tidy` and commit both.",
    ),
    (
        r"go\.mod requires go >= |invalid go version|requires newer Go version|note: module requires Go",
        "The module asks for a newer Go than this runtime's. Choose another, or lower `go` in go.mod.",
    ),
    (
        r"cannot find (main )?module|no Go files in|go: go\.mod file not found",
        "go finds no program to build. Name its folder in the app's build settings.",
    ),
    (
        r"Unsupported class file major version|invalid (target|source) release"
        r"|release version \d+ not supported|has been compiled by a more recent version of the Java",
        "The app wants another version of Java than this runtime's. Choose one that fits, or lower the "
        "release in pom.xml or build.gradle.",
    ),
    (
        r"Could not (resolve|find) (all|artifact|dependencies|org\.|com\.)",
        "Maven or Gradle does not find a dependency. Check its name, its version and its repository.",
    ),
    (
        r"COMPILATION ERROR|Compilation failed; see the compiler error|Execution failed for task ':compile",
        "The code does not compile: the log names file and line above.",
    ),
    (
        r"There are test failures|There were failing tests|Tests run: \d+, Failures: [1-9]",
        "The app's own tests failed, and the build with them. The log says which ones.",
    ),
    # --- Dockerfiles -------------------------------------------------------------------------------------
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
        r"exec format error|no matching manifest for linux",
        "A program or an image is made for another kind of processor. Use one for linux/amd64.",
    ),
    (
        r"Unable to locate package|E: Package '\S+' has no installation candidate",
        "apt does not know a package. Run `apt-get update` in the same step before, and check its name.",
    ),
    # --- git ---------------------------------------------------------------------------------------------
    (
        r"Permission denied \(publickey|Host key verification failed|Load key .*: invalid format",
        "The repository does not accept the key, or its server is not the one it was. Check the deploy key.",
    ),
    (
        r"could not read Username|Authentication failed|Repository not found|returned error: 40[134]"
        r"|does not appear to be a git repository|Invalid username or password",
        "The repository does not exist or is private. Check its address.",
    ),
    (
        r"couldn't find remote ref|[Nn]ot our ref|upload-pack: not our ref|Remote branch \S+ not found",
        "The repository has no such branch, tag or commit.",
    ),
    (
        r"returned error: 30\d|unable to update url base from redirection",
        "The repository has moved. Use its new address.",
    ),
    (
        r"No url found for submodule|clone of '.*' into submodule path|Failed to clone '.*'",
        "A submodule cannot be fetched. Check its address in .gitmodules, and that it may be read.",
    ),
    # --- whatever was called -------------------------------------------------------------------------------
    (
        r"[Pp]ermission denied|Operation not permitted|EACCES",
        "A step was not allowed to do something. Scripts need `chmod +x`; only root writes what is root's.",
    ),
    (
        r"fork: (retry: )?Resource temporarily unavailable|Cannot fork|can't start new thread|EAGAIN",
        "A step started too many processes. Build with fewer jobs at once, such as `make -j2`.",
    ),
    (
        r"\r: (command )?not found|/bin/(ba)?sh\^M|env: .*\\r",
        "A script has the line ends of Windows. Save it with those of Unix; .gitattributes tells git.",
    ),
    (
        r"command not found|executable file not found|: not found$",
        _NO_PROGRAM,
    ),
    (
        r"was not done within \d",
        "The build took too long. Look in the log for what it waited for; builds may use a cache.",
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
    # What a shell says of many a cause: the log, where it knows better, goes first.
    return _NO_PROGRAM if "exit code 127" in message else None


def is_ours(message: str) -> bool:
    """An engine's error the customer has no part in: worth another try."""
    return _OURS.search(message[:_LONGEST]) is not None
