"""Numbers made ready to be drawn: smoothed, in buckets, on round ticks. Knows no screen; NaN is a gap."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from afs_mlx.runs.history import MOST, History

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII_BLOCKS = "_.:-=+*#"
MOST_POINTS = 400
SMOOTHED_SHARE = 0.025  # of the steps, on either side
MOST_STRETCHES, STRETCH_STEPS = 150, 6  # of which the lowest and the highest loss are drawn

type Point = tuple[float, float]


@dataclass(frozen=True)
class RunCurves:
    """One run's curves over steps. `band` is (step, lowest, highest) training loss of a stretch; `gaps`: not finite."""

    name: str
    train: tuple[Point, ...]
    band: tuple[tuple[float, float, float], ...]
    valid: tuple[Point, ...]
    rate: tuple[Point, ...]
    speed: tuple[Point, ...]
    rolled_back: tuple[int, ...]
    window: int
    gaps: int

    @property
    def empty(self) -> bool:
        return not self.train and not self.valid


class Curve:
    """A growing curve in bounded memory: when it is full, neighbours become their mean."""

    def __init__(self, most: int = 2048) -> None:
        self._most, self._stride = most, 1
        self._means: list[float] = []
        self._open: list[float] = []

    def append(self, value: float) -> None:
        """A value that is not finite, or beyond any loss, is left out."""
        if not abs(value) <= MOST:
            return
        self._open.append(value)
        if len(self._open) < self._stride:
            return
        self._means.append(mean(self._open))
        self._open = []
        if len(self._means) >= self._most:
            self._means = [mean(self._means[i : i + 2]) for i in range(0, len(self._means), 2)]
            self._stride *= 2

    @property
    def values(self) -> list[float]:
        return self._means + ([mean(self._open)] if self._open else [])


def curves_of(name: str, history: History) -> RunCurves:
    """A run's curves, thinned to at most MOST_POINTS a line."""
    train = [(float(s.step), s.loss) for s in history.steps if math.isfinite(s.loss)]
    steps, losses = [x for x, _ in train], [y for _, y in train]
    half = int(len(losses) * SMOOTHED_SHARE)
    smooth = smoothed(losses, half)
    groups = buckets(len(losses), MOST_POINTS)
    stretches = buckets(len(losses), min(MOST_STRETCHES, max(1, len(losses) // STRETCH_STEPS)))
    valid = [(float(v.step), v.loss) for v in history.validations if math.isfinite(v.loss)]
    return RunCurves(
        name=name,
        train=tuple((steps[(a + b - 1) // 2], smooth[(a + b - 1) // 2]) for a, b in groups),
        band=tuple((steps[(a + b - 1) // 2], min(losses[a:b]), max(losses[a:b])) for a, b in stretches),
        valid=tuple(_thinned(valid)),
        rate=tuple(_thinned([(float(s.step), s.learning_rate) for s in history.steps])),
        speed=tuple(_thinned([(float(s.step), s.tokens_per_s) for s in history.steps])),
        rolled_back=tuple(rollback.failed_step for rollback in history.rollbacks),
        window=2 * half + 1,
        gaps=len(history.steps) - len(train) + len(history.validations) - len(valid),
    )


def smoothed(values: Sequence[float], half: int) -> list[float]:
    """The mean over each value and `half` others on either side, as far as there are so many; all finite."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    ends = [(max(0, i - half), min(len(values), i + half + 1)) for i in range(len(values))]
    return [(sums[b] - sums[a]) / (b - a) for a, b in ends]


def buckets(count: int, most: int) -> list[tuple[int, int]]:
    """At most `most` ranges (from, to) that together cover `count` values, none empty."""
    number = min(count, most)
    return [(i * count // number, (i + 1) * count // number) for i in range(number)]


def sparkline(values: Sequence[float], width: int, ascii_only: bool = False) -> str:
    """A line of blocks, at most `width` characters: low values low, each character the mean of its share."""
    levels = ASCII_BLOCKS if ascii_only else BLOCKS
    finite = [value for value in values if math.isfinite(value)]
    means = [mean(finite[a:b]) for a, b in buckets(len(finite), max(0, width))]
    if not means:
        return ""
    low, high = min(means), max(means)
    if not high > low:
        return levels[len(levels) // 2] * len(means)
    return "".join(levels[min(len(levels) - 1, int((v - low) / (high - low) * len(levels)))] for v in means)


def mean(values: Sequence[float]) -> float:
    """Of at least one finite value."""
    return sum(values) / len(values)


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within [low, high], at most `most`."""
    span = high - low
    if most < 1 or not math.isfinite(span) or span <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next((power * f for f in (1, 2, 5, 10) if power * f > 0 and span / (power * f) <= most), power * 20)
    first = math.ceil(low / step - 1e-9)
    found = [round(i * step, 12) for i in range(first, first + most + 1) if i * step <= high + step * 1e-9]
    return found or [low]


def extent(values: Iterable[float]) -> tuple[float, float]:
    """The lowest and the highest, never the same, with a little room; (0, 1) for nothing."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    room = (high - low) * 0.04 or abs(high) * 0.1 or 0.5
    return low - room, high + room


def _thinned(points: Sequence[Point]) -> list[Point]:
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    return [finite[b - 1] for _, b in buckets(len(finite), MOST_POINTS)]
