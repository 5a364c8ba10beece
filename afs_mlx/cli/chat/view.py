"""What a conversation shows: the answer on stdout, who answers and why on stderr."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

from afs_mlx.cli.render.console import err, plain
from afs_mlx.pipelines.chat import ChatEvent, ExpertReady, LeftOut, Noted, Routed


class ChatView:
    """Receives the session's events; repeats no notice about an expert. `notices` are all of them, for `--json`."""

    def __init__(self) -> None:
        self.notices: list[str] = []

    def __call__(self, event: ChatEvent) -> None:
        if isinstance(event, Routed):
            route = event.route
            if route.switched or not route.previous:
                before = f"{route.previous} → " if route.previous else ""
                reason = route.reason.removeprefix(f"from {route.previous} to {route.expert}: ")
                say(f"[{before}{route.expert}] {reason}")
        elif isinstance(event, ExpertReady):
            for text in event.notices:
                if text not in self.notices:
                    self._notice(text)
            say(ready_line(event))
        elif isinstance(event, LeftOut):
            count = "the oldest question is" if event.questions == 1 else f"the {event.questions} oldest questions are"
            self._notice(
                f"the context of {event.context_tokens} tokens is full: {count} left out of the prompt, "
                "with the answers; /clear begins anew"
            )
        elif isinstance(event, Noted):
            self._notice(event.text)

    def _notice(self, text: str) -> None:
        self.notices.append(text)
        say(f"notice: {text}", style="yellow")


def ready_line(ready: ExpertReady) -> str:
    """`din@v2 on smollm2-135m (demo), adapter v2-… (named)`."""
    demo = " (demo)" if ready.demo else ""
    what = ", fused " if ready.fused and not ready.where else ", adapter "
    adapter = f"{what}{ready.adapter}" if ready.adapter else ""
    where = f" at {ready.where}" if ready.where else ""
    return f"{ready.label} on {ready.base}{demo}{where}{adapter}"


class Writer(Protocol):
    """Shows an answer that comes in pieces."""

    def write(self, piece: str) -> None: ...
    def end(self) -> None: ...


class PlainWriter:
    """The text as it is, controls stripped, for pipes and simple terminals."""

    def write(self, piece: str) -> None:
        sys.stdout.write(plain(piece))
        sys.stdout.flush()

    def end(self) -> None:
        sys.stdout.write("\n")
        sys.stdout.flush()


def show(pieces: Iterator[str]) -> None:
    """Stream one answer to stdout and end the line; Ctrl-C passes through after what has come."""
    writer = _writer()
    with _stopping() as stop:
        try:
            for piece in pieces:
                stop.begun = True
                writer.write(piece)
                if stop.asked:
                    raise KeyboardInterrupt
        finally:
            if close := getattr(pieces, "close", None):
                close()
            writer.end()


def say(text: str, style: str = "dim") -> None:
    """What is no answer, on stderr; wrapped at words where a person reads it."""
    err().print(plain(text), style=style, markup=False, soft_wrap=not err().is_terminal)


def _writer() -> Writer:
    if not sys.stdout.isatty() or os.environ.get("TERM", "dumb") in ("dumb", "unknown"):
        return PlainWriter()
    from rich.console import Console

    from afs_mlx.cli.render.markdown import MarkdownWriter

    return MarkdownWriter(Console(highlight=False, emoji=False, markup=False))


class _Stop:
    begun = asked = False

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked or not self.begun:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def _stopping() -> Iterator[_Stop]:
    """Ctrl-C ends an answer after the piece that is being made, so that what was computed can be kept; or at once."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
