"""A terminal for programs that draw: a pseudo-terminal with a program on it, and a screen that reads what it writes.

The screen knows what prompt_toolkit and rich send: cursor moves, erasing, colours (which it drops).
"""

import codecs
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Self

_SEQUENCE = re.compile(r"\x1b(?:\[([?>]?)([\d;]*)([@-~])|\][^\x07\x1b]*(?:\x07|\x1b\\)|[()][A-Z0-9]|[=>78cM])")
_OWN_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"
)
ENTER, CTRL_C, CTRL_D, ESC_ENTER = "\r", "\x03", "\x04", "\x1b\r"


class Screen:
    """All lines ever written, the last `rows` of which can still be drawn over."""

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self.lines: list[list[str]] = [[]]
        self._row = self._column = 0
        self._pending = ""
        self.asked_for_cursor = False

    @property
    def text(self) -> str:
        """What a person sees, scrolled-away lines first."""
        return "\n".join("".join(line).rstrip() for line in self.lines).rstrip("\n")

    def feed(self, text: str) -> None:
        """Draw; a sequence that has only begun waits for its rest."""
        text = self._pending + text
        self._pending = ""
        place = 0
        while place < len(text):
            char = text[place]
            if char != "\x1b":
                self._put(char)
                place += 1
            elif found := _SEQUENCE.match(text, place):
                place = found.end()
                if found[3]:
                    self._control(found[1], found[2], found[3])
            elif len(text) - place < 64:
                self._pending = text[place:]
                return
            else:
                place += 1

    @property
    def _top(self) -> int:
        return max(0, len(self.lines) - self.rows)

    def _put(self, char: str) -> None:
        if char == "\r":
            self._column = 0
        elif char == "\n":
            self._down()
        elif char == "\b":
            self._column = max(0, self._column - 1)
        elif char >= " ":
            if self._column >= self.columns:
                self._column = 0
                self._down()
            line = self.lines[self._row]
            line.extend(" " * (self._column + 1 - len(line)))
            line[self._column] = char
            self._column += 1

    def _down(self) -> None:
        self._row += 1
        if self._row == len(self.lines):
            self.lines.append([])

    def _control(self, private: str, numbers: str, final: str) -> None:
        if private:
            return
        first, *rest = [int(n or 0) for n in numbers.split(";")]
        count = max(1, first)
        if final == "A":
            self._row = max(self._top, self._row - count)
        elif final == "B":
            self._row = min(len(self.lines) - 1, self._row + count)
        elif final == "C":
            self._column = min(self.columns - 1, self._column + count)
        elif final == "D":
            self._column = max(0, self._column - count)
        elif final == "G":
            self._column = count - 1
        elif final == "H":
            self._row = min(len(self.lines) - 1, self._top + count - 1)
            self._column = max(0, rest[0] - 1) if rest else 0
        elif final == "K":
            line = self.lines[self._row]
            self.lines[self._row] = [] if first == 2 else line[: self._column]
        elif final == "J":
            if first == 2:
                self._row = self._top
            self.lines[self._row] = self.lines[self._row][: self._column]
            del self.lines[self._row + 1 :]
        elif final == "n" and first == 6:
            self.asked_for_cursor = True


class Terminal:
    """A program on a terminal of its own; `raw` is everything that it wrote."""

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str], columns: int = 80, rows: int = 24, cwd: str | None = None
    ) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.screen, self.raw = Screen(columns, rows), ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

        self.process = subprocess.Popen(
            [sys.executable, "-IS", "-c", _OWN_TERMINAL, *command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**env, "TERM": "xterm-256color", "COLUMNS": "", "LINES": ""},
            cwd=cwd,
            start_new_session=True,
        )
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._master, text.encode())

    def until(self, text: str, count: int = 1, timeout_s: float = 60.0) -> str:
        """Read until the screen shows `text` so often; raises TimeoutError with the screen."""
        self.read_until(lambda: self.screen.text.count(text) >= count, timeout_s, f"{text!r} × {count}")
        return self.screen.text

    def leave(self, timeout_s: float = 60.0) -> int:
        """Ctrl-D, and the exit code."""
        self.type(CTRL_D)
        return self.ended(timeout_s)

    def ended(self, timeout_s: float = 60.0) -> int:
        """Wait for the program's end; its exit code."""
        self.read_until(lambda: False, timeout_s, "the end", ends=True)
        return self.process.wait(timeout_s)

    def read_until(self, found: Callable[[], bool], timeout_s: float, what: str, ends: bool = False) -> None:
        """Read until `found`, or with `ends` until the program is gone; raises TimeoutError with the screen."""
        deadline = time.monotonic() + timeout_s
        while not found():
            ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
            try:
                data = os.read(self._master, 65536) if ready else None
            except OSError:  # the other end is closed
                data = b""
            if not data:
                if ends and data == b"":
                    return
                raise TimeoutError(f"{what} did not come; the screen:\n{self.screen.text}")
            text = self._decoder.decode(data)
            self.raw += text
            self.screen.feed(text)
            if self.screen.asked_for_cursor:  # prompt_toolkit waits for the answer before it draws below
                self.screen.asked_for_cursor = False
                self.type(f"\x1b[{self.screen._row - self.screen._top + 1};{self.screen._column + 1}R")
