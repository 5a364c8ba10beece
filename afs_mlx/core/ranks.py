"""Starts one process a rank, watches them and ends them together. Knows hosts and processes, no MLX.

    launch(argv, read_hosts("2"), resume="afs-mlx train din --resume") -> exit code

`argv` is the command of every rank, without --hosts; it begins with this Python. A rank finds in its environment what
MLX's backends read: MLX_RANK with MLX_HOSTFILE (ring), or with MLX_IBV_DEVICES, MLX_JACCL_COORDINATOR and
MLX_JACCL_RING (JACCL); mpirun sets its own. AFS_MLX_BEAT_FD is where `beat` writes. AFS_MLX_HOME, AFS_MLX_DEBUG and
the hosts file's `envs` go to other machines; nothing else does.

What a rank has to do: call `beat` at least every `stall_s` seconds (every collective of `engine.training.distributed`
does); on SIGINT or SIGTERM finish the step that all ranks agree on and exit with 130.
"""

import contextlib
import os
import select
import shlex
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import Empty, SimpleQueue

from afs_mlx.core.errors import AfsError, ExitCode
from afs_mlx.core.hosts import Cluster
from afs_mlx.core.rank_keeper import BEAT_FD, INTERRUPT, TERMINATE
from afs_mlx.core.rank_process import ALIVE, LOST, WAITING, RankProcess
from afs_mlx.core.rank_wiring import wired

STALL_S = 300.0
GRACE_S = 30.0
_SETTLE_S = 3.0  # a rank that lost another may be seen to end before the other
_END_S = 5.0  # for the rest after a failure: no step can be finished any more, a message can
_RANK_NAMES = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
_WIRING = ("MLX_RANK", "MLX_HOSTFILE", "MLX_IBV_DEVICES", "MLX_JACCL_COORDINATOR", "MLX_JACCL_RING", BEAT_FD)


def beat(state: bytes = ALIVE) -> None:
    """Tell the launcher that this rank is alive: ALIVE, WAITING (for other ranks) or LOST. Never blocks or raises."""
    descriptor = os.environ.get(BEAT_FD)
    if descriptor is None:
        return
    with contextlib.suppress(OSError, ValueError):
        number = int(descriptor)
        if select.select([], [number], [], 0)[1]:  # a launcher that was stopped reads nothing
            os.write(number, state)


def rank_here() -> int:
    """This process's rank as its launcher told it, 0 where there is none. Only rank 0 should speak."""
    found = next((os.environ[name] for name in _RANK_NAMES if os.environ.get(name)), "0")
    return int(found) if found.isdigit() else 0


def launch(
    argv: Sequence[str],
    cluster: Cluster,
    *,
    resume: str = "",
    stall_s: float = STALL_S,
    grace_s: float = GRACE_S,
) -> int:
    """Run `argv` on every rank; 0 when all succeeded, 130 when they were interrupted.

    Rank 0 writes where this process writes, the others are heard only when something fails. The first SIGINT or
    SIGTERM is passed on once to each rank, the second kills them. A rank that fails, or shows no life for `stall_s`
    seconds, ends all; then AfsError names it, with `resume` as the remedy. `grace_s` is what ranks get to finish
    their step when this process itself is killed. Nothing that was started is left. Call it from the main thread.
    """
    events: SimpleQueue[RankProcess | int] = SimpleQueue()
    inherited = {name: value for name, value in os.environ.items() if name not in _WIRING}
    with wired(cluster) as wiring, _signals(events):
        watch = _Watch(events, stall_s)
        try:
            for rank, (host, env, files) in enumerate(wiring.ranks):
                process = RankProcess(rank, host.name, host.local, wiring.watched, events.put)
                if host.local:
                    local = {name: str(wiring.folder / name) for name in files}
                    process.start_here([*wiring.prefix, *argv], inherited | env | local, grace_s, shown=rank == 0)
                else:
                    process.start_below_ssh(argv, env, files, grace_s)
                watch.ranks.append(process)
            watch.until_all_ended()
        finally:
            watch.end_all()
    return watch.result(resume)


class _Watch:
    """The ranks' common fate."""

    def __init__(self, events: "SimpleQueue[RankProcess | int]", stall_s: float) -> None:
        self.ranks: list[RankProcess] = []
        self._events, self._stall_s = events, stall_s
        self._stopped = {int(ExitCode.INTERRUPTED)}  # exit codes of those who were asked to stop
        self._asked = self._killed = False
        self._ended: list[RankProcess] = []  # in the order of their ends, before we ended any
        self._stalled: list[RankProcess] = []
        self._looked_at = time.monotonic()

    def until_all_ended(self) -> None:
        """Return when all ranks have ended, one has failed, some are stalled or all are to be killed."""
        while len(self._ended) < len(self.ranks):
            event = self._next(min(1.0, self._stall_s / 4))
            if isinstance(event, RankProcess):
                self._ended.append(event)
                if self._failed(event):
                    return self._settle(event)
            elif event is not None:
                if self._asked:
                    self._killed = True
                    return None
                self._asked = True
                self._stopped.add(128 + event)
                for rank in self._running():
                    rank.order(INTERRUPT if event == signal.SIGINT else TERMINATE)
            elif self._look_for_stalls():
                return None
        return None

    def end_all(self) -> None:
        """End what still runs: with SIGTERM and a little time after a failure, at once when asked twice."""
        if not self._killed:
            for rank in self._running():
                rank.order(TERMINATE)
            self._wait(_END_S)
        for rank in self._running():
            rank.kill()
        self._wait(_END_S)
        for rank in self.ranks:
            rank.close()

    def result(self, resume: str) -> int:
        """The exit code of all; raises AfsError for a rank that failed."""
        again = f"go on from the last checkpoint: {resume}" if resume else "go on from its last checkpoint"
        failed = [rank for rank in self._ended if self._failed(rank)]
        # One that lost another fails because of it.
        first = next((rank for rank in failed if rank.state != LOST), failed[0] if failed else None)
        if self._killed or (self._asked and first is not None and first.state == LOST):
            return ExitCode.INTERRUPTED
        if self._stalled:
            raise AfsError(_stall_report(self._stalled, self._stall_s), _place(self._stalled[0], self.ranks), again)
        if first is None:
            return ExitCode.INTERRUPTED if any(rank.code for rank in self._ended) else ExitCode.OK
        code = ExitCode(first.code) if first.code in set(ExitCode) else ExitCode.ERROR
        raise AfsError(_failure_report(first), _place(first, self.ranks), _remedy(first, again), code)

    def _failed(self, rank: RankProcess) -> bool:
        return rank.code != 0 and rank.code not in self._stopped

    def _running(self) -> list[RankProcess]:
        return [rank for rank in self.ranks if rank.code is None]

    def _next(self, timeout_s: float) -> RankProcess | int | None:
        try:
            return self._events.get(timeout=max(0.0, timeout_s))
        except Empty:
            return None

    def _wait(self, limit_s: float) -> None:
        """Until all have ended, for so long, or until somebody asks again."""
        deadline = time.monotonic() + limit_s
        while self._running() and time.monotonic() < deadline:
            if isinstance(self._next(deadline - time.monotonic()), int):
                return

    def _settle(self, failed: RankProcess) -> None:
        """Where a rank failed because it lost another, give the other the time to be seen ending."""
        deadline = time.monotonic() + _SETTLE_S
        while failed.state == LOST and len(self._ended) < len(self.ranks) and time.monotonic() < deadline:
            event = self._next(deadline - time.monotonic())
            if isinstance(event, RankProcess):
                self._ended.append(event)
                failed = event if self._failed(event) else failed

    def _look_for_stalls(self) -> bool:
        now = time.monotonic()
        late_s, self._looked_at = now - self._looked_at, now
        if late_s > self._stall_s / 2:  # it was us who stood still
            for rank in self.ranks:
                rank.heard_at = now
        running = [rank for rank in self._running() if rank.watched]
        silent = [rank for rank in running if now - rank.heard_at > self._stall_s]
        # Who waits is silent without guilt, as long as somebody works.
        working = [rank for rank in silent if rank.state != WAITING]
        self._stalled = working or (silent if len(silent) == len(running) else [])
        return bool(self._stalled)


@contextmanager
def _signals(events: "SimpleQueue[RankProcess | int]") -> Iterator[None]:
    before = {
        number: signal.signal(number, lambda received, _frame: events.put(received))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _place(rank: RankProcess, ranks: Sequence[RankProcess]) -> str:
    return rank.host if not rank.watched else f"rank {rank.rank} of {len(ranks)} on {rank.host}"


def _failure_report(rank: RankProcess) -> str:
    code = rank.code or 0
    number = -code if code < 0 else code - 128
    try:
        how = f"was ended by {signal.Signals(number).name}"
    except ValueError:
        how = f"ended with exit code {code}"
    return f"{how}, so all ranks were ended{_last_lines(rank)}"


def _stall_report(stalled: Sequence[RankProcess], stall_s: float) -> str:
    if all(rank.state == WAITING for rank in stalled):
        return f"every rank has waited for the others for {stall_s:g} s: the connection hangs, so all ranks were ended"
    names = ", ".join(str(rank.rank) for rank in stalled)
    return f"no sign of life for {stall_s:g} s (rank {names}), so all ranks were ended{_last_lines(stalled[0])}"


def _last_lines(rank: RankProcess) -> str:
    if rank.rank == 0:
        return "; its own messages stand above"
    return "; its last lines:" + "".join(f"\n  {line}" for line in rank.lines) if rank.lines else "; it wrote nothing"


def _remedy(rank: RankProcess, again: str) -> str:
    code = rank.code or 0
    if code == 255 and not rank.local:
        return f"see that `ssh -o BatchMode=yes {shlex.quote(rank.host)} true` works from here, then {again}"
    return f"mend what it says; then start it anew, or {again}" if 0 < code < 128 else again
