"""Running one outside program under limits: time, memory, file size and output. Knows nothing of what it runs.

Not a sandbox: the program reads what this user may read. What it is given must be checked before.
"""

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from afs_mlx.core.errors import AfsError, MissingError

# Sets the limits on itself and becomes the program. An interpreter of its own (about 15 ms) instead of `preexec_fn`,
# which runs Python between fork and exec: in a process with MLX's and tokenizers' threads that may deadlock.
# Python ignores SIGPIPE and SIGXFSZ and exec would pass that on, so both go back to their defaults.
# macOS refuses or ignores RLIMIT_AS: there memory_bytes is a wish, the other limits hold.
_LAUNCHER = """
import os, resource, signal, sys
cpu_s, memory_bytes, file_bytes = map(int, sys.argv[1:4])
def limit(kind, soft, hard):
    allowed = resource.getrlimit(kind)[1]
    if allowed != resource.RLIM_INFINITY:
        soft, hard = min(soft, allowed), min(hard, allowed)
    resource.setrlimit(kind, (soft, hard))
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
limit(resource.RLIMIT_CORE, 0, 0)
limit(resource.RLIMIT_FSIZE, file_bytes, file_bytes)
limit(resource.RLIMIT_CPU, cpu_s, cpu_s + 1)
try:
    limit(resource.RLIMIT_AS, memory_bytes, memory_bytes)
except (ValueError, OSError):
    if sys.platform != "darwin":
        raise
try:
    os.execve(sys.argv[4], sys.argv[4:], {})
except OSError as error:
    os.write(2, ("cannot run %s: %s\\n" % (sys.argv[4], error.strerror)).encode())
    os._exit(126)
"""

_POLL_S = 0.2


@dataclass(frozen=True)
class Finished:
    """How a program ended. `returncode` is minus the signal's number when one ended it, 126 when it could not start."""

    returncode: int
    stdout: bytes
    stderr: bytes
    timed_out: bool
    truncated: bool = False  # one of the streams was longer than output_bytes; the rest was read and thrown away


def run_limited(
    argv: Sequence[str | Path],
    *,
    cwd: Path,
    timeout_s: float,
    cpu_s: int,
    memory_bytes: int,
    file_bytes: int,
    output_bytes: int,
) -> Finished:
    """Run a program in `cwd` with an empty environment and no stdin, never through a shell.

    The program is argv[0], a path or a name on this process's PATH. Its process group is killed when `timeout_s` (wall)
    has passed, when it has ended and left children, and when this call is interrupted; a child that makes a session of
    its own escapes that. `output_bytes` caps each of stdout and stderr. Raises MissingError when there is no such
    program, AfsError when `cwd` is no folder.
    """
    program = shutil.which(argv[0])
    if program is None:
        raise MissingError("there is no such program", str(argv[0]), "install it, or check the PATH")
    if not cwd.is_dir():
        raise AfsError("the folder to run in does not exist", str(cwd), "check the path")
    limits = [str(int(value)) for value in (cpu_s, memory_bytes, file_bytes)]
    command = [sys.executable, "-I", "-S", "-c", _LAUNCHER, *limits, str(Path(program).absolute()), *map(str, argv[1:])]
    deadline = time.monotonic() + timeout_s
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env={},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        streams, timed_out = _read(process, deadline, output_bytes)
        if not timed_out:
            timed_out = not _ended(process, deadline)
    finally:
        # Also on KeyboardInterrupt: the new session does not get the terminal's Ctrl-C.
        _kill_group(process.pid)
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    stdout, stderr = (bytes(stream[:output_bytes]) for stream in streams)
    truncated = any(len(stream) > output_bytes for stream in streams)
    return Finished(process.returncode, stdout, stderr, timed_out, truncated)


def _read(process: subprocess.Popen[bytes], deadline: float, output_bytes: int) -> tuple[list[bytearray], bool]:
    """Read both streams to their end, keeping at most output_bytes + 1 of each; the second value: time ran out."""
    assert process.stdout is not None
    assert process.stderr is not None
    streams = [bytearray(), bytearray()]
    with selectors.DefaultSelector() as selector:
        for stream, pipe in zip(streams, (process.stdout, process.stderr), strict=True):
            selector.register(pipe, selectors.EVENT_READ, stream)
        while selector.get_map():
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                return streams, True
            exited = process.poll() is not None
            if exited:  # what still holds the pipes are its children
                _kill_group(process.pid)
            ready = selector.select(0 if exited else min(remaining_s, _POLL_S))
            if exited and not ready:
                break
            for key, _ in ready:
                chunk = os.read(key.fd, 65536)
                if not chunk:
                    selector.unregister(key.fileobj)
                key.data.extend(chunk[: output_bytes + 1 - len(key.data)])
    return streams, False


def _ended(process: subprocess.Popen[bytes], deadline: float) -> bool:
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS answers EPERM for a group of zombies
        os.killpg(group, signal.SIGKILL)
