"""Every command's way out: one message without a traceback, the right exit code, `--debug` for the rest."""

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from afs_mlx.cli.render.console import err, notice, plain
from afs_mlx.core.errors import AfsError, ExitCode

DEBUG = "AFS_MLX_DEBUG"


def handled[**P, R](command: Callable[P, R]) -> Callable[P, R]:
    """Turn what a user can mend into a message and an exit code."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except AfsError as error:
            if os.environ.get(DEBUG):
                raise
            err().print(f"error: {plain(str(error))}", style="red", markup=False)
            raise typer.Exit(error.code) from error
        except KeyboardInterrupt as error:
            err().print("\ninterrupted; what was finished before is intact", style="yellow")
            raise typer.Exit(ExitCode.INTERRUPTED) from error
        except BrokenPipeError as error:
            # The reader left; Python would complain again when it flushes stdout at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(ExitCode.OK) from error
        except OSError as error:
            if os.environ.get(DEBUG):
                raise
            where = f"{error.filename}: " if error.filename else ""
            err().print(f"error: {plain(where)}{error.strerror or error}", style="red", markup=False)
            raise typer.Exit(ExitCode.ERROR) from error

    return run


@contextmanager
def stoppable(what: str, stop: threading.Event) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) sets `stop`, so that the current step is finished; the second stops at once."""

    def ask(_number: int, _frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        notice(f"finishing this step and saving {what}; Ctrl-C again stops at once")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def remembered_interrupt() -> Iterator[Callable[[], None]]:
    """Ctrl-C raises KeyboardInterrupt as ever; what is yielded raises it again where it got lost.

    An import or a finaliser of a library may swallow it, and a chain of minutes would go on.
    """
    seen = threading.Event()

    def note(_number: int, _frame: object) -> None:
        seen.set()
        raise KeyboardInterrupt

    def check() -> None:
        if seen.is_set():
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        yield check
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)
