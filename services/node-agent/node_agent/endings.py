"""How an instance ended, in words a customer understands. PURE."""

_CODES = {
    0: "ended by itself",
    126: "the command cannot be executed (is the file executable, and made for this machine?)",
    127: "command not found",
    130: "interrupted (SIGINT)",
    134: "aborted (SIGABRT)",
    135: "killed by a bus error (SIGBUS)",
    136: "killed by an arithmetic error (SIGFPE)",
    137: "killed (SIGKILL)",
    139: "crashed: segmentation fault (SIGSEGV)",
    143: "asked to stop (SIGTERM)",
}


def words(exit_code: int | None, *, out_of_memory: bool = False, memory_mb: int | None = None) -> str:
    if out_of_memory:
        size = "" if memory_mb is None else f" ({memory_mb} MB)"
        return f"killed: out of memory{size}"
    if exit_code is None:
        return "ended with an unknown exit code"
    return f"exit code {exit_code}: {_CODES[exit_code]}" if exit_code in _CODES else f"exit code {exit_code}"
