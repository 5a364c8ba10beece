"""Runs one rank and never outlives its launcher: `python -m afs_mlx.core.rank_keeper BEAT_FD GRACE_S COMMAND…`.

A process of its own, because MLX holds the interpreter's lock while it waits for the other ranks to connect: a thread
of the rank could not act then. Knows nothing of MLX. Stdin is the leash: a byte on it is a signal to pass on (I, T),
K ends everything at once, its end means that the launcher is gone: the rank gets SIGTERM and GRACE_S seconds to finish
its step. Works the same below ssh, which passes no signals on.
"""

import os
import signal
import subprocess
import sys
import threading

BEAT_FD = "AFS_MLX_BEAT_FD"
INTERRUPT, TERMINATE, KILL = b"I", b"T", b"K"
_SIGNALS = {INTERRUPT: signal.SIGINT, TERMINATE: signal.SIGTERM}


def main(arguments: list[str]) -> int:
    """The rank's exit code, 128 + n where signal n ended it."""
    beats, grace_s, command = int(arguments[0]), float(arguments[1]), arguments[2:]
    if beats == 0:
        beats = os.dup(0)  # the leash is a socket: the way back is free
    try:
        rank = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, pass_fds=(beats,), env={**os.environ, BEAT_FD: str(beats)}
        )
    except OSError as error:
        sys.stderr.write(f"cannot run {command[0]}: {error.strerror}\n")
        return 126
    threading.Thread(target=_follow, args=(rank, grace_s), daemon=True).start()
    code = rank.wait()
    return code if code >= 0 else 128 - code


def _follow(rank: subprocess.Popen[bytes], grace_s: float) -> None:
    while order := _next_order():
        if order == KILL:
            os.killpg(0, signal.SIGKILL)
        if order in _SIGNALS:
            rank.send_signal(_SIGNALS[order])
    rank.terminate()
    try:
        rank.wait(grace_s)
    except subprocess.TimeoutExpired:
        os.killpg(0, signal.SIGKILL)


def _next_order() -> bytes:
    try:
        return os.read(0, 1)
    except OSError:  # a connection that broke is an end, too
        return b""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
