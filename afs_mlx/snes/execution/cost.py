"""What a routine costs: bytes once, cycles and master clocks for each run."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from afs_mlx.snes.execution.board import Outcome


@dataclass(frozen=True)
class Spread:
    """A figure over all runs."""

    least: int
    median: float
    most: int
    mean: float

    @classmethod
    def of(cls, values: Sequence[int]) -> "Spread":
        """Of at least one value."""
        return cls(min(values), median(values), max(values), fmean(values))

    def __str__(self) -> str:
        if self.least == self.most:
            return str(self.least)
        return f"{self.median:g} ({self.least} to {self.most})"


@dataclass(frozen=True)
class Cost:
    """Size in bytes, CPU cycles and 21.477 MHz master clocks from the first instruction to the end of the last.

    DRAM refresh is left out. Bytes count everything assembled, tables too.
    """

    size_bytes: int
    cycles: Spread
    clocks: Spread

    @classmethod
    def of(cls, size_bytes: int, runs: Sequence[Outcome]) -> "Cost":
        """Of at least one run."""
        return cls(size_bytes, Spread.of([run.cycles for run in runs]), Spread.of([run.clocks for run in runs]))

    def cheaper_than(self, other: "Cost", goal: str) -> bool:
        """For `bytes` the size, for `cycles` the mean over the same states; equal is not cheaper."""
        if goal == "bytes":
            return self.size_bytes < other.size_bytes
        return self.cycles.mean < other.cycles.mean
