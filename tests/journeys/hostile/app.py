"""A tenant that wants out: tries everything and answers with what it has found, as JSON. Nothing is what the
platform promises.
"""

import ctypes
import http.server
import json
import os
import pathlib
import re
import socket
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

LIBC = ctypes.CDLL(None, use_errno=True)
FOUND: dict[str, list[str]] = {}
TIMEOUT = 1.0


def found(what: str, words: object) -> None:
    FOUND.setdefault(what, []).append(str(words)[:200])


# --- the network ------------------------------------------------------------------------------------------


def reaches(address: str, port: int) -> str | None:
    try:
        with socket.create_connection((address, port), TIMEOUT):
            return f"{address}:{port}"
    except OSError:
        return None


def own_addresses() -> set[str]:
    """What the kernel tells of our interface, without any tool."""
    return set(re.findall(r"\|-- (\d+\.\d+\.\d+\.\d+)", pathlib.Path("/proc/net/fib_trie").read_text()))


def gateway() -> str:
    for line in pathlib.Path("/proc/net/route").read_text().splitlines()[1:]:
        columns = line.split()
        if columns[1] == "00000000":
            return ".".join(str(int(columns[2][i : i + 2], 16)) for i in (6, 4, 2, 0))
    return "0.0.0.0"


def network(targets: list[str]) -> None:
    """`targets`: address:port of everything there is to be found."""
    ports = {int(target.rpartition(":")[2]) for target in targets} | {22, 2375, 2376, 4222, 5432, 8000, 8001}
    everything = {(t.rpartition(":")[0], int(t.rpartition(":")[2])) for t in targets}
    everything |= {(gateway(), port) for port in ports}
    with ThreadPoolExecutor(32) as pool:
        for answer in pool.map(lambda pair: reaches(*pair), sorted(everything)):
            if answer:
                found("reached", answer)
    # The neighbours by their place: the whole of our own network but ourselves and the gateway.
    base = gateway().rpartition(".")[0]
    others = [f"{base}.{n}" for n in range(2, 255) if f"{base}.{n}" not in own_addresses()]
    with ThreadPoolExecutor(64) as pool:
        for answer in pool.map(lambda address: reaches(address, int(os.environ["PORT"])), others):
            if answer:
                found("neighbour", answer)
    for line in pathlib.Path("/proc/net/if_inet6").read_text().splitlines():
        if not line.endswith(" lo"):
            found("an address that no packet rule knows", line)


def packets() -> None:
    kinds = {
        "raw": (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
        "raw TCP": (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP),
        "raw IPv6": (socket.AF_INET6, socket.SOCK_RAW, 58),
        "packet": (socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)),
        "datagrams of packets": (socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3)),
    }
    for name, kind in kinds.items():
        try:
            socket.socket(*kind).close()
            found("socket", name)
        except OSError:
            pass
    try:
        # To the machine below, past every packet rule.
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
        found("socket", "vsock")
    except OSError:
        pass


# --- files ------------------------------------------------------------------------------------------------

DEVICES = {"full", "null", "ptmx", "random", "tty", "urandom", "zero", "console"}
SECRETS = re.compile(r"BERTH|NATS|SECRET|PASSWORD|TOKEN|SEAL|POSTGRES|DATABASE|DOCKER", re.IGNORECASE)


def files() -> None:
    for folder, folders, names in os.walk("/"):
        # Its own memory of everything is not a way out.
        folders[:] = [n for n in folders if os.path.join(folder, n) not in ("/proc", "/sys")]
        for name in (*names, *folders):
            path = os.path.join(folder, name)
            try:
                mode = os.lstat(path).st_mode
            except OSError:
                continue
            if stat.S_ISSOCK(mode):
                found("a socket", path)
            if stat.S_ISBLK(mode) or (stat.S_ISCHR(mode) and name not in DEVICES and "/pts" not in path):
                found("a device", path)
    for name in ("mem", "kmem", "kmsg", "sda", "vda", "loop0", "loop-control", "fuse", "kvm", "net/tun"):
        try:
            os.close(os.open(f"/dev/{name}", os.O_RDONLY))
            found("a device", name)
        except OSError:
            pass
    for major, minor in ((7, 0), (8, 0), (254, 0), (1, 1), (10, 237)):
        for folder in ("/tmp", "/dev", "/dev/shm", "/data"):
            try:
                os.mknod(f"{folder}/made", 0o600 | stat.S_IFBLK, os.makedev(major, minor))
                found("a device it made", f"{folder} {major}:{minor}")
                os.unlink(f"{folder}/made")
            except OSError:
                pass


def mounts() -> None:
    """Which places of ours lie on what: what is bound in is ours alone."""
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        if re.search(r"docker\.sock|containerd|volumes/files|/\.berth|/etc/berth", line):
            found("a mount", line)
    for name in ("/data/..", "/proc/1/root", "/proc/self/root"):
        for stranger in ("etc/shadow", "root/.ssh", "var/lib/docker", "var/lib/berth-node"):
            try:
                os.listdir(f"{name}/{stranger}")
                found("a folder", f"{name}/{stranger}")
            except OSError:
                pass
    data = pathlib.Path("/data")
    if data.exists() and {p.name for p in data.iterdir()} - {"mine"}:
        found("in its volume", list(data.iterdir()))


WRITES = (
    "/proc/sysrq-trigger",
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/hostname",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/vm/drop_caches",
    "/proc/sys/fs/binfmt_misc/register",
    "/proc/irq/default_smp_affinity",
    "/sys/kernel/uevent_helper",
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    "/sys/fs/cgroup/devices/devices.allow",
    "/sys/fs/cgroup/cpu/cpu.cfs_quota_us",
    "/sys/fs/cgroup/pids/pids.max",
    "/sys/fs/cgroup/cgroup.procs",
    "/sys/fs/cgroup/memory/release_agent",
    "/sys/fs/cgroup/rdma/release_agent",
)
READS = (
    "/proc/kcore",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/sched_debug",
    "/proc/timer_list",
    "/proc/latency_stats",
    "/sys/firmware/dmi",
    "/sys/kernel/debug",
    "/sys/kernel/security/apparmor",
    "/root",
    "/etc/shadow",
)


def kernel() -> None:
    for path in WRITES:
        try:
            os.close(os.open(path, os.O_WRONLY))
            found("writable", path)
        except OSError:
            pass
    for path in READS:
        try:
            place = pathlib.Path(path)
            content: object = os.listdir(path) if place.is_dir() else place.read_bytes()[:64]
            if content:
                found("readable", f"{path}: {content!r}")
        except OSError:
            pass
    symbols = pathlib.Path("/proc/kallsyms").read_text().splitlines()[:50]
    if {line.split()[0] for line in symbols} - {"0000000000000000"}:
        found("readable", "/proc/kallsyms")
    try:
        os.makedirs("/sys/fs/cgroup/memory/made")
        found("writable", "a control group")
    except OSError:
        pass


# --- the system's calls -------------------------------------------------------------------------------------

CLONE = {"mounts": 0x20000, "users": 0x10000000, "processes": 0x20000000, "network": 0x40000000}
SYSCALLS = {
    "bpf": 321,
    "perf_event_open": 298,
    "keyctl": 250,
    "add_key": 248,
    "userfaultfd": 323,
    "init_module": 175,
    "finit_module": 313,
    "kexec_load": 246,
    "open_by_handle_at": 304,
    "setns": 308,
    "pivot_root": 155,
    "swapon": 167,
    "reboot": 169,
    "settimeofday": 164,
    "iopl": 172,
    "acct": 163,
    "quotactl": 179,
    "mount": 165,
    "umount2": 166,
    "chroot": 161,
    "syslog": 103,
    "fsopen": 430,
    "open_tree": 428,
    "move_mount": 429,
}


def calls() -> None:
    given = {
        "chroot": (b"/tmp",),
        "mount": (b"none", b"/tmp", b"tmpfs", 0, 0),
        "syslog": (3, b" " * 64, 64),
    }
    for name, number in SYSCALLS.items():
        ctypes.set_errno(0)
        # Most without sense: another error than "not permitted" says that it is allowed.
        result = LIBC.syscall(number, *given.get(name, (0, 0, 0, 0, 0)))
        if result >= 0 or ctypes.get_errno() not in (1, 38):
            found("a call", f"{name}: {result}, errno {ctypes.get_errno()}")
    for name, flag in CLONE.items():
        if os.fork() == 0:
            os._exit(0 if LIBC.unshare(flag) == 0 else 1)
        if os.wait()[1] == 0:
            found("a namespace of its own", name)


def users() -> None:
    mine = {*os.getresuid(), *os.getresgid(), *os.getgroups()}
    if len(mine) > 1 or min(mine) < 10_000:
        found("a user", f"{os.getresuid()} {os.getresgid()} {os.getgroups()}")
    for number in (0, 1000, min(mine) + 1):
        try:
            os.setuid(number)
            found("a user", number)
        except OSError:
            pass
    # The image brings a shell that belongs to root and asks to run as root.
    done = subprocess.run(["/rootly", "-p", "-c", "id -u"], check=False, capture_output=True, text=True)
    if done.stdout.strip() != str(os.getuid()):
        found("a user", f"setuid: {done.stdout}")
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    if any(int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")):
        found("capabilities", status["CapBnd"])
    if status["NoNewPrivs"] != "1" or status["Seccomp"] != "2":
        found("no walls", f"{status['NoNewPrivs']} {status['Seccomp']}")


PTRACE_SEIZE = 0x4206


def processes(outside: list[int]) -> None:
    for pid in outside:
        if LIBC.ptrace(PTRACE_SEIZE, pid, 0, 0) == 0:
            found("traced", pid)
        try:
            os.kill(pid, 0)
            found("a process", pid)
        except OSError:
            pass
    mine = {os.getpid(), os.getppid()}
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in mine:
            continue
        try:
            command = pathlib.Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        # Its init, and what it has started itself, are all there is.
        if int(name) > 1 and "app.py" not in command:
            found("a process", f"{name}: {command}")
    for name, value in os.environ.items():
        if SECRETS.search(name):
            found("told", f"{name}={value}")


def all_of_it(targets: list[str], outside: list[int]) -> dict[str, list[str]]:
    FOUND.clear()
    for attempt in (packets, files, mounts, kernel, calls, users):
        attempt()
    processes(outside)
    network(targets)
    return FOUND


def told(query: str) -> str:
    """`targets/pids`, each with commas between."""
    targets, _, pids = query.partition("/")
    try:
        return json.dumps(all_of_it(targets.split(","), [int(pid) for pid in pids.split(",")]))
    except Exception as error:
        return json.dumps({"broken": [repr(error)]})


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        body = b"lurking" if path == "/" else told(query).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


if __name__ == "__main__":
    if len(sys.argv) > 1:
        # In a command's own container.
        print(told(sys.argv[1]), flush=True)
        sys.exit()
    threading.stack_size(256 * 1024)
    pathlib.Path("/data/mine").write_text("mine")
    http.server.ThreadingHTTPServer(("", int(os.environ["PORT"])), Answer).serve_forever()
