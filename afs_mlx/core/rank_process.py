"""One rank as its launcher sees it: a process here or below ssh, its last lines, its signs of life.

Between the two stands `rank_keeper`. A rank's beats are single bytes; where they share a stream with its output (ssh),
they are taken out of it.
"""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from afs_mlx.core.errors import AfsError
from afs_mlx.core.rank_keeper import KILL

ALIVE, WAITING, LOST = b"\0", b"\1", b"\2"  # computing; inside a collective; a collective failed
_BEATS = ALIVE + WAITING + LOST
KEPT_LINES = 12

# No question may be asked: nobody would see it. A connection without traffic for a minute is over.
_SSH = ("ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10")
_SSH_ALIVE = ("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4")


class RankProcess:
    """A started rank. `on_exit(self)` is called from a thread when it has ended and its last lines are read."""

    def __init__(
        self, rank: int, host: str, local: bool, watched: bool, on_exit: Callable[["RankProcess"], None]
    ) -> None:
        self.rank, self.host, self.local, self.watched = rank, host, local, watched
        self.heard_at = time.monotonic()
        self.state = ALIVE
        self.code: int | None = None
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._on_exit = on_exit
        self._leash: socket.socket | None = None
        self._listener: threading.Thread | None = None
        self._process: subprocess.Popen[bytes]

    def start_here(self, command: Sequence[str], env: Mapping[str, str], grace_s: float, shown: bool) -> None:
        """Start on this machine; `shown` lets it write where we write, a terminal too, else its output is kept."""
        self._leash, theirs = socket.socketpair()
        output = None if shown else subprocess.PIPE
        with theirs:
            self._spawn(_keeper(0, grace_s, command), theirs.fileno(), output, env)
        self._listener = _thread(self._hear, self._leash)
        _thread(self._wait)

    def start_below_ssh(
        self, command: Sequence[str], env: Mapping[str, str], files: Mapping[str, str], grace_s: float
    ) -> None:
        """Start on `host` in this working directory; `files` are written there and named by these variables."""
        self._spawn(ssh_command(self.host, command, env, files, grace_s), subprocess.PIPE, subprocess.PIPE, None)
        _thread(self._wait)

    def order(self, order: bytes) -> None:
        """Pass a signal on, as `rank_keeper` reads it."""
        with contextlib.suppress(OSError, ValueError):  # it has ended meanwhile
            if self._leash is not None:
                self._leash.send(order)
            elif self._process.stdin is not None:
                self._process.stdin.write(order)
                self._process.stdin.flush()

    def kill(self) -> None:
        """End it and all that it started, at once."""
        self.order(KILL)
        if self._leash is not None:
            self._kill_group()

    def close(self) -> None:
        """Leave nothing of it on this machine; blocks until its process is reaped."""
        if self._process.poll() is None:
            self._kill_group()
        self._process.wait()
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
            if self._leash is not None and self._listener is not None:
                self._listener.join(timeout=1)  # it ended with the last process that held the other end
                self._leash.close()

    def _spawn(self, command: Sequence[str], stdin: int, output: int | None, env: Mapping[str, str] | None) -> None:
        try:
            self._process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=output,
                stderr=None if output is None else subprocess.STDOUT,
                env=env,
                # The terminal's Ctrl-C must reach it once, from us, and a group of its own can be ended whole.
                start_new_session=True,
            )
        except OSError as error:
            raise AfsError(f"rank {self.rank} cannot be started: {error.strerror}", command[0], "install it") from error

    def _wait(self) -> None:
        reader = _thread(self._read, self._process.stdout)
        code = self._process.wait()
        self._kill_group()  # what it left behind
        reader.join(timeout=2)
        self.code = code
        self._on_exit(self)

    def _read(self, stream: IO[bytes] | None) -> None:
        if stream is None:
            return
        with stream:
            rest = b""
            while chunk := os.read(stream.fileno(), 65536):
                if self._leash is None:
                    self._beat(chunk)
                    chunk = chunk.translate(None, _BEATS)
                *lines, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
                self._keep(lines)
                rest = rest[-4096:]
            self._keep([rest])

    def _keep(self, lines: Sequence[bytes]) -> None:
        self.lines.extend(line.decode(errors="replace")[:500] for line in lines if line.strip())

    def _hear(self, leash: socket.socket) -> None:
        with contextlib.suppress(OSError):  # reset, where beats were unread
            while chunk := leash.recv(4096):
                self._beat(chunk)

    def _beat(self, chunk: bytes) -> None:
        self.heard_at = time.monotonic()
        if found := chunk.translate(None, bytes(set(range(256)) - set(_BEATS))):
            self.state = found[-1:]

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS answers EPERM for a group of zombies
            os.killpg(self._process.pid, signal.SIGKILL)


def ssh_command(
    host: str, command: Sequence[str], env: Mapping[str, str], files: Mapping[str, str], grace_s: float
) -> list[str]:
    """The ssh call that runs `command` on `host` where the working directory is the same as here.

    Every word is quoted for a POSIX shell, then once more for the login shell.
    """
    steps = [f"cd {shlex.quote(str(Path.cwd()))}"]
    if files:
        steps += ["d=$(mktemp -d)", "trap 'rm -rf \"$d\"' EXIT"]
        steps += [f'printf %s {shlex.quote(text)} >"$d"/{name}' for name, text in files.items()]
    words = [f'{name}="$d"/{name}' for name in files] + [shlex.quote(f"{name}={value}") for name, value in env.items()]
    steps.append(" ".join(["env", *words, shlex.join(_keeper(1, grace_s, command))]))
    return [*_SSH, *_SSH_ALIVE, "--", host, "exec /bin/sh -c " + shlex.quote(" && ".join(steps))]


def _keeper(beat_fd: int, grace_s: float, command: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "afs_mlx.core.rank_keeper", str(beat_fd), str(grace_s), *command]


def _thread(target: Callable[..., None], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    return thread
