"""Markdown that streams in: prose block by block, code line by line, the unfinished rest in a live region.

Whole blocks are printed for good, so that the scrollback holds each of them once whatever the terminal's size.
"""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from afs_mlx.cli.render.assembly import LANGUAGES, highlighted, is_assembly
from afs_mlx.cli.render.console import plain

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.live import Live
    from rich.text import Text

REDRAW_EVERY_S = 0.08
_FENCE = re.compile(r"\s*(?P<marks>`{3,}|~{3,})\s*(?P<language>[\w+#.-]*)[^`]*")
_HEADING = re.compile(r" {0,3}#{1,6} ")
THEME = "ansi_dark"


@dataclass(frozen=True)
class Prose:
    """Lines of Markdown that belong together."""

    text: str


@dataclass(frozen=True)
class Code:
    """One line; `before` are the lines of the same block above it."""

    line: str
    language: str
    before: tuple[str, ...] = ()


@dataclass(frozen=True)
class Gap:
    """An empty line between blocks."""


type Block = Prose | Code | Gap


class Blocks:
    """Cuts a stream of Markdown into blocks. Assembly outside a fence is code too: its lines must stay lines."""

    def __init__(self) -> None:
        self._partial = ""
        self._prose: list[str] = []
        self._fence: tuple[str, str] | None = None  # marks, language
        self._code: list[str] = []
        self._last: Block | None = None

    def feed(self, text: str) -> Iterator[Block]:
        """The blocks that are whole now."""
        *lines, self._partial = (self._partial + text).split("\n")
        for line in lines:
            yield from self._line(line)

    def end(self) -> Iterator[Block]:
        """What is left when the stream ends."""
        if self._partial:
            partial, self._partial = self._partial, ""
            yield from self._line(partial)
        yield from self._flush()

    def unfinished(self) -> Block | None:
        """What is shown of the rest meanwhile."""
        if self._fence is not None:
            return Code(self._partial, self._fence[1], tuple(self._code)) if self._partial else None
        if not self._prose and is_assembly(self._partial, isinstance(self._last, Code)):
            return Code(self._partial, "asm")
        text = "\n".join([*self._prose, self._partial])
        return Prose(text) if text.strip() else None

    def _line(self, line: str) -> Iterator[Block]:
        fence = _FENCE.fullmatch(line)
        if self._fence is not None:
            if fence and fence["marks"].startswith(self._fence[0]) and not fence["language"]:
                self._fence = None
            else:
                yield self._said(Code(line, self._fence[1], tuple(self._code)))
                self._code.append(line)
        elif fence:
            yield from self._flush()
            self._fence, self._code = (fence["marks"], fence["language"].lower()), []
        elif not line.strip():
            yield from self._flush()
            if self._last is not None and not isinstance(self._last, Gap):
                yield self._said(Gap())
        elif is_assembly(line, after_code=isinstance(self._last, Code) and not self._prose):
            yield from self._flush()
            yield self._said(Code(line, "asm"))
        elif _HEADING.match(line):
            yield from self._flush()
            yield self._said(Prose(line))
        else:
            self._prose.append(line)

    def _flush(self) -> Iterator[Block]:
        if self._prose:
            text, self._prose = "\n".join(self._prose), []
            yield self._said(Prose(text))

    def _said(self, block: Block) -> Block:
        self._last = block
        return block


class MarkdownWriter:
    """Shows one answer in a terminal. Controls are taken out of each piece, so that none can be put together."""

    def __init__(self, console: "Console") -> None:
        self._console = console
        self._blocks = Blocks()
        self._live: Live | None = None
        self._drawn_s = 0.0

    def write(self, piece: str) -> None:
        """Show what is whole, and the rest as it stands."""
        for block in self._blocks.feed(plain(piece)):
            self._print(block)
        now = time.monotonic()
        if now - self._drawn_s >= REDRAW_EVERY_S:
            self._drawn_s = now
            self._redraw(self._blocks.unfinished())

    def end(self) -> None:
        """Show what is left, for good."""
        self._redraw(None)
        for block in self._blocks.end():
            self._print(block)
        if self._live is not None:
            self._live.stop()

    def _print(self, block: Block) -> None:
        if self._live is not None:
            self._live.update("")  # or it would be drawn once more below the block that holds it
        # A line of code is wrapped by the terminal alone, so that it is copied as one.
        self._console.print(rendered(block), soft_wrap=isinstance(block, Code))

    def _redraw(self, block: Block | None) -> None:
        if self._live is None:
            if block is None:
                return
            from rich.live import Live

            self._live = Live(
                console=self._console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
                vertical_overflow="crop",
            )
            self._live.start()
        self._live.update(_Tail(rendered(block)) if block else "", refresh=True)


@dataclass(frozen=True)
class _Tail:
    """The end of what does not fit: a block as high as the screen is still being written at its end."""

    content: "RenderableType"

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.segment import Segment

        lines = console.render_lines(self.content, options, pad=False)
        for line in lines[-max(1, console.height - 2) :]:
            yield from line
            yield Segment.line()


def rendered(block: Block) -> "RenderableType":
    """A block for the terminal."""
    if isinstance(block, Gap):
        return ""
    return prose(block.text) if isinstance(block, Prose) else code_line(block)


def code_line(code: Code) -> "Text":
    """One line in the colours of its language; text where that is not known."""
    from rich.syntax import Syntax
    from rich.text import Text

    if code.language in LANGUAGES or (not code.language and is_assembly(code.line)):
        return highlighted(code.line)
    if not code.language:
        return Text(code.line)
    # The lines above decide, a string over several lines for example.
    lines = Syntax("", code.language, theme=THEME).highlight("\n".join([*code.before, code.line])).split("\n")
    number = len(code.before)
    return lines[number] if number < len(lines) else Text(code.line)


def prose(text: str) -> "RenderableType":
    """Markdown in which nothing is lost: HTML is text, a line stays a line, no link hides its address."""
    from markdown_it import MarkdownIt
    from rich.markdown import Markdown

    shown = Markdown("", code_theme=THEME, hyperlinks=False)
    parser = MarkdownIt().enable("strikethrough").enable("table").disable(["html_inline", "html_block", "entity"])
    shown.parsed = parser.parse(text)
    for token in shown.parsed:
        for child in token.children or ():
            if child.type == "softbreak":
                child.type = "hardbreak"
    return shown
