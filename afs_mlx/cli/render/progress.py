"""Progress on stderr: a live line in a terminal, plain lines where there is none."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from afs_mlx.cli.render.console import duration, err, size
from afs_mlx.engine.training.events import Planned, Stepped, TrainingEvent, Validated

PLAIN_EVERY_S = 15.0


@contextmanager
def bytes_progress() -> Iterator[Callable[[int, int], None]]:
    """A download's progress: call with bytes done and in all."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err(), transient=True, disable=not err().is_terminal) as progress:
        task = progress.add_task("fetch", total=None, visible=False)
        printed_s = time.monotonic()

        def count(done: int, total: int) -> None:
            nonlocal printed_s
            progress.update(task, completed=done, total=total, visible=True)
            if not err().is_terminal and time.monotonic() - printed_s >= PLAIN_EVERY_S:
                printed_s = time.monotonic()
                err().print(f"  {size(done)} of {size(total)}", markup=False)

        yield count


@contextmanager
def count_progress(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """Progress over a known number of things: call with done, total and a few words."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[words]}", markup=False),
    )
    with Progress(*columns, console=err(), transient=True, disable=not err().is_terminal) as progress:
        task = progress.add_task(what, total=None, words="")
        printed_s = time.monotonic()

        def count(done: int, total: int, words: str) -> None:
            nonlocal printed_s
            progress.update(task, completed=done, total=total, words=words)
            if not err().is_terminal and time.monotonic() - printed_s >= PLAIN_EVERY_S:
                printed_s = time.monotonic()
                err().print(f"{what} {done}/{total}", markup=False)

        yield count


class TrainingView:
    """Shows a training: plan, a live line with loss, rate, memory and ETA, a line for each validation."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (
            TextColumn("  train"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[words]}"),
        )
        self._progress = Progress(*columns, console=err(), transient=True, disable=not err().is_terminal)
        self._task = self._progress.add_task("train", total=None, words="first validation …")
        self._printed_s = 0.0
        self._first_step_s: float | None = None

    def __enter__(self) -> "TrainingView":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, event: TrainingEvent) -> None:
        if isinstance(event, Planned):
            self._plan(event)
        elif isinstance(event, Stepped):
            self._step(event)
        elif isinstance(event, Validated):
            mark = "  best so far" if event.best and event.step else ""
            err().print(f"  step {event.step:>4}  valid loss {event.loss:.3f}{mark}", markup=False)

    def _plan(self, event: Planned) -> None:
        self._progress.update(self._task, total=event.total_steps)
        dropped = f", {event.dropped_rows} dropped as too long" if event.dropped_rows else ""
        err().print(
            f"  {event.train_rows} rows to train, {event.valid_rows} to validate{dropped}; "
            f"{event.supervised_tokens} of {event.train_tokens} tokens are learnt; "
            f"{event.trainable_parameters / 1e6:.2f} M parameters; "
            f"{event.total_steps} steps, {event.padding_share:.1%} padding",
            markup=False,
        )

    def _step(self, event: Stepped) -> None:
        # The clock starts after the first validation, so that the ETA counts steps by what steps cost.
        if self._first_step_s is None:
            self._first_step_s = event.elapsed_s
        spent = event.elapsed_s - self._first_step_s
        left_s = spent / max(1, event.step - 1) * (event.total_steps - event.step)
        eta = duration(left_s) if event.step > 1 else "…"
        words = (
            f"loss {event.loss:.3f}  {event.tokens_per_s:.0f} tok/s  {event.peak_memory_gb:.1f} GB  "
            f"ETA {eta}  epoch {event.epoch}"
        )
        self._progress.update(self._task, completed=event.step, words=words)
        if not err().is_terminal and event.elapsed_s - self._printed_s >= PLAIN_EVERY_S:
            self._printed_s = event.elapsed_s
            err().print(f"  step {event.step:>4}/{event.total_steps}  {words}", markup=False)
