"""Nothing of POSIX alone on the way of a run: macOS and Windows have other modules and calls.

Windows itself is not at hand here, so this reads the sources: modules and names that its Python
does not have, and text files whose encoding or line ends would be the system's.
"""

import ast
import os
from pathlib import Path

import pytest

SOURCES = sorted([*Path("src/gptmill").rglob("*.py"), *Path("stages").glob("*.py")])
# https://docs.python.org/3/library/index.html, "Availability: Unix" or "not Windows".
MODULES = {
    "crypt", "curses", "fcntl", "grp", "nis", "ossaudiodev", "posix", "pty", "pwd", "readline",
    "resource", "spwd", "syslog", "termios", "tty",
}  # fmt: skip
NAMES = {
    "os": "chown chroot confstr ctermid fchdir fchmod fchown fork forkpty fpathconf fstatvfs "
    "getegid geteuid getgid getgroups getloadavg getpgid getpgrp getpriority getsid getuid "
    "initgroups killpg lchown lockf major minor mkfifo mknod nice openpty pathconf pipe2 "
    "posix_fadvise posix_fallocate posix_spawn posix_spawnp pread preadv pwrite pwritev readv "
    "register_at_fork sched_getaffinity sched_setaffinity sendfile setegid seteuid setgid "
    "setgroups setpgid setpriority setsid setuid statvfs sync sysconf tcgetpgrp ttyname uname "
    "wait wait3 wait4 waitid writev "
    # There, but it leaves the terminal to two processes at once.
    "execl execle execlp execlpe execv execve execvp execvpe "
    "O_ASYNC O_CLOEXEC O_DIRECT O_DIRECTORY O_DSYNC O_NOATIME O_NOCTTY O_NOFOLLOW O_NONBLOCK "
    "O_PATH O_SYNC O_TMPFILE",
    "signal": "SIGALRM SIGBUS SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGTSTP "
    "SIGTTIN SIGTTOU SIGUSR1 SIGUSR2 alarm getitimer pause pthread_kill pthread_sigmask setitimer "
    "siginterrupt sigpending sigtimedwait sigwait sigwaitinfo",
    "socket": "AF_UNIX SO_REUSEPORT fromfd socketpair sethostname if_nameindex",
}
# Asked for only where the system has them: behind a look at it, or at the module's absence.
GUARDED = {
    "src/gptmill/tracking/server.py": {"os.execve"},
    "src/gptmill/serve/trial.py": {"resource", "signal.setitimer"},
}


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_no_module_and_no_name_of_posix_alone(path: Path) -> None:
    found = set(posix_only(ast.parse(path.read_text(encoding="utf-8"))))
    assert found == GUARDED.get(path.as_posix(), set())


def posix_only(tree: ast.Module) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module] if node.module.split(".")[0] in MODULES else []
            found += [f"{node.module}.{a.name}" for a in node.names if named(node.module, a.name)]
        elif isinstance(node, ast.Attribute) and named(getattr(node.value, "id", ""), node.attr):
            found.append(f"{node.value.id}.{node.attr}")
    return found


def named(module: str, name: str) -> bool:
    return name in NAMES.get(module, "").split()


def test_what_is_posix_alone_is_found() -> None:
    code = "import fcntl, os, signal\nfrom resource import getrusage\nfrom os import fork\n"
    code += "os.kill(1, signal.SIGKILL)\nos.setsid()\nos.replace('a', 'b')\nsignal.SIGTERM\n"
    found = posix_only(ast.parse(code))
    assert sorted(found) == ["fcntl", "os.fork", "os.setsid", "resource", "signal.SIGKILL"]


@pytest.mark.skipif(os.name == "nt", reason="looks for what this system has")
def test_the_lists_name_things_that_exist() -> None:
    """A misspelt name would never be found; some are of one Unix alone."""
    import signal

    missing = [name for name in NAMES["os"].split() if not hasattr(os, name)]
    assert len(missing) < 12, missing
    assert all(hasattr(signal, name) for name in NAMES["signal"].split())


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_text_has_an_encoding_and_its_own_line_ends(path: Path) -> None:
    """Windows reads and writes text in a code page and with two characters at a line's end."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert not {call.lineno: lack for call in calls if (lack := of_the_system(call))}


def of_the_system(call: ast.Call) -> set[str]:
    """What a call that opens a text file leaves to the system."""
    given = {keyword.arg for keyword in call.keywords}
    method = isinstance(call.func, ast.Attribute)
    name = call.func.attr if method else getattr(call.func, "id", "")
    if method and name in ("read_text", "write_text"):
        return ({"encoding"} if name == "read_text" else {"encoding", "newline"}) - given
    owner = getattr(getattr(call.func, "value", None), "id", "")
    if name != "open" or owner in ("os", "tarfile", "archive"):
        return set()
    place = 0 if method else 1
    mode = getattr(call.args[place], "value", "") if len(call.args) > place else "r"
    if not isinstance(mode, str) or "b" in mode or not mode:
        return set()
    return ({"encoding"} if mode == "r" else {"encoding", "newline"}) - given


def test_what_is_left_to_the_system_is_found() -> None:
    code = "p.read_text()\np.open('w')\np.open('rb')\np.open()\nopen(p, 'w', encoding='utf-8')"
    calls = [line.value for line in ast.parse(code).body]
    both, encoding = {"encoding", "newline"}, {"encoding"}
    assert [of_the_system(c) for c in calls] == [encoding, both, set(), encoding, {"newline"}]
