"""Curves as a chart of characters: braille dots, or signs where those cannot be shown or told apart."""

from collections.abc import Sequence
from dataclasses import dataclass

from afs_mlx.runs.plots.curves import Point, RunCurves, extent, ticks

SIGNS = ".+x*~=:%"
LETTERS = "ABCDEFGH"
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # the bit of each dot of a braille cell, from the top
LEAST_WIDTH, LEAST_HEIGHT = 8, 3
NO_RUN = -1


@dataclass(frozen=True)
class Span:
    """Text of one colour: of the run with this number, NO_RUN for axes."""

    text: str
    run: int = NO_RUN


def chart(runs: Sequence[RunCurves], width: int, height: int, braille: bool, ascii_only: bool) -> list[list[Span]]:
    """Lines of spans, at most `width` characters each: smoothed training loss as lines, validations as points.

    Several runs have letters for points, in the order given; one has a dot.
    """
    points = [point for run in runs for point in (*run.train, *run.valid)]
    low, high = extent(y for _, y in points)
    marks = ticks(low, high, max(2, height // 3))
    names = [_number(mark) for mark in marks]
    left = max(map(len, names))
    plot = _Plot(
        max(LEAST_WIDTH, width - left - 2),
        max(LEAST_HEIGHT, height - 2),
        min((x for x, _ in points), default=0.0),
        max((x for x, _ in points), default=1.0),
        low,
        high,
        braille,
    )
    for number, run in enumerate(runs):
        plot.line(run.train, number)
    for number, run in enumerate(runs):
        plot.points(run.valid, number, LETTERS[number] if len(runs) > 1 else "o" if ascii_only else "●")
    labels = {plot.row(mark): name for mark, name in zip(marks, names, strict=True)}
    bar, tick, corner, dash = ("|", "+", "+", "-") if ascii_only else ("│", "┤", "└", "─")
    rows = [
        [Span(f"{labels.get(y, ''):>{left}} {tick if y in labels else bar}"), *spans]
        for y, spans in enumerate(plot.rows())
    ]
    first, last = f"{plot.left:.0f}", f"step {plot.right:.0f}"
    axis = first + last.rjust(max(1, plot.columns - len(first)))
    return [*rows, [Span(f"{'':>{left}} {corner}{dash * plot.columns}")], [Span(f"{'':>{left + 2}}{axis}")]]


class _Plot:
    """A grid of cells, each with a character or braille bits, and the run that drew there last."""

    def __init__(
        self, columns: int, lines: int, left: float, right: float, low: float, high: float, braille: bool
    ) -> None:
        self.columns, self.lines, self.left, self.right = columns, lines, left, max(right, left + 1)
        self._low, self._high, self._braille = low, high, braille
        self._across, self._down = (2, 4) if braille else (1, 1)
        self._bits: dict[tuple[int, int], int] = {}
        self._signs: dict[tuple[int, int], str] = {}
        self._runs: dict[tuple[int, int], int] = {}

    def row(self, y: float) -> int:
        """The line of the grid at which a loss stands, 0 at the top."""
        return self._fine_row(y) // self._down

    def line(self, points: Sequence[Point], run: int) -> None:
        """Connect the points, through every column between them."""
        for (x0, y0), (x1, y1) in zip(points, points[1:] or points, strict=False):
            a, b = self._fine_column(x0), self._fine_column(x1)
            ends = self._fine_row(y0), self._fine_row(y1)
            for column in range(a, b + 1):
                share = (column - a) / (b - a) if b > a else 0.0
                here = round(ends[0] + (ends[1] - ends[0]) * share)
                after = round(ends[0] + (ends[1] - ends[0]) * min(1.0, share + 1 / (b - a) if b > a else 1.0))
                for fine in range(min(here, after), max(here, after) + 1):
                    self._dot(column, fine, run)

    def points(self, points: Sequence[Point], run: int, sign: str) -> None:
        """One character a point, over the lines."""
        for x, y in points:
            cell = self._fine_column(x) // self._across, self.row(y)
            self._signs[cell], self._runs[cell] = sign, run

    def rows(self) -> list[list[Span]]:
        """The grid from the top, cells of one run joined."""
        return [self._spans(y) for y in range(self.lines)]

    def _spans(self, y: int) -> list[Span]:
        spans: list[Span] = []
        for x in range(self.columns):
            char = self._signs.get((x, y)) or (chr(0x2800 + bits) if (bits := self._bits.get((x, y))) else " ")
            run = self._runs.get((x, y), NO_RUN)
            if spans and spans[-1].run == run:
                spans[-1] = Span(spans[-1].text + char, run)
            else:
                spans.append(Span(char, run))
        return spans

    def _dot(self, column: int, fine: int, run: int) -> None:
        cell = column // self._across, fine // self._down
        if self._braille:
            self._bits[cell] = self._bits.get(cell, 0) | DOTS[fine % 4][column % 2]
        else:
            self._signs[cell] = SIGNS[run]
        self._runs[cell] = run

    def _fine_column(self, x: float) -> int:
        return round((x - self.left) / (self.right - self.left) * (self.columns * self._across - 1))

    def _fine_row(self, y: float) -> int:
        share = (self._high - y) / (self._high - self._low)
        return min(self.lines * self._down - 1, max(0, round(share * (self.lines * self._down - 1))))


def _number(value: float) -> str:
    return f"{value:.4g}"
