"""Progress on stderr: a live line in a terminal, plain lines where there is none."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from afs_mlx.cli.render.console import err, size

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
