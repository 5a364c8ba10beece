"""Keeps what libraries say in background threads off the screen, where a person is typing."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, cast


class _OwnThreadOnly:
    """A stream for the thread that made it; what others write is dropped."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        return self._stream.write(text) if threading.get_ident() == self._thread else len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def quiet_background() -> Iterator[None]:
    """Only this thread reaches stdout and stderr meanwhile."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast("Any", _OwnThreadOnly(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
