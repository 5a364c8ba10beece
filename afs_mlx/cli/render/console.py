"""The two consoles and the plain words for sizes, times and notices."""

import errno
import json
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA_VERSION = 1


@cache
def out() -> "Console":
    """Answers."""
    from rich.console import Console

    class Pipe(Console):
        def on_broken_pipe(self) -> None:
            """The reader left, as `head` does; rich would exit with an error."""
            raise BrokenPipeError(errno.EPIPE, "the reader left")

    return Pipe(soft_wrap=True, highlight=False, emoji=False)  # emoji: `:on:` in a text is no name of one


@cache
def err() -> "Console":
    """Notices and progress."""
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)


def notice(text: str) -> None:
    """One line on stderr."""
    err().print(f"notice: {text}", style="yellow", markup=False)


def step(text: str) -> None:
    """What happens now, on stderr."""
    err().print(text, style="bold", markup=False)


def emit_json(value: dict[str, Any]) -> None:
    """The one JSON object of `--json`."""
    text = json.dumps({"schema_version": SCHEMA_VERSION, **value}, ensure_ascii=False, indent=2)
    # Inside JSON these can only stand in texts, where the escape means the same.
    sys.stdout.write(text.translate({ord(c): f"\\u{ord(c):04x}" for c in (*BIDI, *map(chr, range(0x7F, 0xA0)))}) + "\n")


def size(size_bytes: float) -> str:
    """`93 MB`, `1.7 GB`."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= factor:
            number = size_bytes / factor
            return f"{number:.1f} {unit}" if number < 10 else f"{number:.0f} {unit}"
    return f"{size_bytes:.0f} bytes"


def duration(seconds: float) -> str:
    """`41 s`, `6 min 05 s`, `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def plain(text: str) -> str:
    """Text from a model or a file without terminal controls (CSI, OSC, bidi overrides); line breaks and tabs stay."""
    return "".join(c for c in text if c in "\n\t" or (c.isprintable() and c not in BIDI))


BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")
