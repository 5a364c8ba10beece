"""What a run wrote while it trained: metrics.jsonl, read forgivingly.

The file may end in half a line (a running or a killed run), hold lines that a person changed and numbers that are not
finite. What was rolled back, or trained again after a resume, is not in the curves: the last word on a step counts.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afs_mlx.core.errors import AfsError

METRICS = "metrics.jsonl"
MOST = 1e12  # no loss, rate or count of a training comes near; what is beyond counts as not finite


@dataclass(frozen=True, slots=True)
class Step:
    """An optimizer step; what the line did not hold is NaN."""

    step: int
    loss: float
    learning_rate: float
    supervised_tokens: float
    tokens_per_s: float
    peak_memory_gb: float
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class Validation:
    """A pass over the validation set; step 0 is the base."""

    step: int
    loss: float


@dataclass(frozen=True, slots=True)
class Sample:
    """What the model answered at a validation. Untrusted text, without halves of characters."""

    step: int
    question: str
    answer: str
    expected: str


@dataclass(frozen=True, slots=True)
class Rollback:
    """Step `failed_step` went wrong and training went on after `step`; NaN where the rate's factor is not known."""

    step: int
    failed_step: int
    reason: str
    rate_factor: float


@dataclass(frozen=True)
class History:
    """The lines by kind, steps rising and each once. `unreadable` are line numbers; `torn`: the last line is half."""

    steps: tuple[Step, ...] = ()
    validations: tuple[Validation, ...] = ()
    samples: tuple[Sample, ...] = ()
    rollbacks: tuple[Rollback, ...] = ()
    resumed_at: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()
    stopped_early: int | None = None
    unreadable: tuple[int, ...] = ()
    torn: bool = False

    @property
    def last_step(self) -> int:
        """The last step that any line names, 0 when there is none."""
        ends = [rows[-1].step for rows in (self.steps, self.validations) if rows]
        return max(ends, default=0)

    @property
    def base_loss(self) -> float | None:
        """The validation loss of the base, None when it was not measured."""
        return next((v.loss for v in self.validations if v.step == 0 and math.isfinite(v.loss)), None)

    @property
    def best(self) -> Validation | None:
        """The earliest validation with the lowest loss."""
        return min((v for v in self.validations if math.isfinite(v.loss)), key=lambda v: v.loss, default=None)

    @property
    def samples_of_interest(self) -> tuple[Sample, ...]:
        """The answers of the first validation (the base's), the second, and the last."""
        steps = list(dict.fromkeys(sample.step for sample in self.samples))
        wanted = {*steps[:2], *steps[-1:]}
        return tuple(sample for sample in self.samples if sample.step in wanted)


def read_history(path: Path) -> History:
    """Read a metrics file; one that is absent is an empty history. Raises AfsError when it cannot be opened."""
    try:
        with path.open("rb") as file:
            return parse_history(file)
    except FileNotFoundError:
        return History()
    except OSError as error:
        fix = "check the path and its rights"
        raise AfsError(f"the metrics cannot be read: {error.strerror}", str(path), fix) from error


def parse_history(lines: Iterable[bytes]) -> History:
    """Sort the lines of a metrics file by kind; what cannot be read is counted, never an error."""
    reader = _Reader()
    unreadable: list[int] = []
    torn = False
    for number, line in enumerate(lines, start=1):
        torn = False
        if not line.strip():
            continue
        row = _object(line)
        if row is None or not reader.take(row):
            torn = not line.endswith(b"\n")
            if not torn:
                unreadable.append(number)
        elif row.get("resumed") is True and unreadable[-1:] == [number - 1]:
            unreadable.pop()  # half a line of a kill, which the resumed run has ended
    return reader.history(tuple(unreadable), torn)


class _Reader:
    """Collects rows in the order of the file."""

    def __init__(self) -> None:
        self._steps: list[Step] = []
        self._validations: list[Validation] = []
        self._samples: list[Sample] = []
        self._rollbacks: list[Rollback] = []
        self._resumed_at: list[int] = []
        self._warnings: list[str] = []
        self._stopped_early: int | None = None

    def take(self, row: dict[str, Any]) -> bool:
        """Whether the row says something that is known, whole."""
        if isinstance(row.get("warning"), str):
            self._warnings.append(_text(row["warning"]))
            return True
        step = _count(row.get("step"))
        if step is None:
            return False
        return self._take_at(step, row)

    def _take_at(self, step: int, row: dict[str, Any]) -> bool:
        if "train/loss" in row or "valid/loss" in row:
            return self._take_losses(step, row)
        if "sample/answer" in row:
            texts = (_text(row.get(f"sample/{key}")) for key in ("question", "answer", "expected"))
            self._samples.append(Sample(step, *texts))
        elif "rolled_back/from" in row:
            failed, reason = _count(row["rolled_back/from"]), _text(row.get("rolled_back/reason"))
            self._rollbacks.append(Rollback(step, failed or step, reason, _number(row.get("rate_factor"))))
            self._forget_after(step)
        elif row.get("resumed") is True:
            self._resumed_at.append(step)
            self._forget_after(step)
        elif "stopped_early" in row:
            self._stopped_early = step
        else:
            return False
        return True

    def _take_losses(self, step: int, row: dict[str, Any]) -> bool:
        losses = {key: row[key] for key in ("train/loss", "valid/loss") if key in row}
        if any(loss is not None and not _is_number(loss) for loss in losses.values()):
            return False
        if "train/loss" in row:
            keys = ("train/loss", "learning_rate", "supervised_tokens", "tokens_per_s", "peak_memory_gb", "elapsed_s")
            self._steps.append(Step(step, *(_number(row.get(key)) for key in keys)))
        if "valid/loss" in row:
            self._validations.append(Validation(step, _number(row["valid/loss"])))
        return True

    def _forget_after(self, step: int) -> None:
        """Training goes on after `step`: what was written of later ones did not last."""
        self._stopped_early = None
        rows: list[Any]
        for rows in (self._steps, self._validations, self._samples):
            while rows and rows[-1].step > step:
                rows.pop()

    def history(self, unreadable: tuple[int, ...], torn: bool) -> History:
        return History(
            steps=tuple(_by_step(self._steps)),
            validations=tuple(_by_step(self._validations)),
            samples=tuple(_once(self._samples)),
            rollbacks=tuple(self._rollbacks),
            resumed_at=tuple(self._resumed_at),
            warnings=tuple(self._warnings),
            stopped_early=self._stopped_early,
            unreadable=unreadable,
            torn=torn,
        )


def _by_step[Row: (Step, Validation)](rows: list[Row]) -> list[Row]:
    """Each step once, as last written."""
    last = {row.step: row for row in rows}
    return [last[step] for step in sorted(last)]


def _once(samples: list[Sample]) -> list[Sample]:
    """A question that was answered again at the same step counts as last answered."""
    last = {(sample.step, sample.question): sample for sample in samples}
    return sorted(last.values(), key=lambda sample: sample.step)


def _object(line: bytes) -> dict[str, Any] | None:
    """The line's object. After half a line that a kill left, a resumed run's first object stands in the same line."""
    found = _parsed(line)
    # Within a JSON text every quote is escaped, so these bytes begin an object.
    if found is None and (start := line.rfind(b'{"step":')) > 0:
        found = _parsed(line[start:])
    return found


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):  # not UTF-8, not JSON, a number of thousands of digits, too deep
        return None
    return value if isinstance(value, dict) else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> float:
    if not _is_number(value):
        return math.nan
    return float(value) if abs(value) <= MOST or value != value else math.inf


def _count(value: Any) -> int | None:
    """A step: a whole number that is not negative, also when it is written as 4.0."""
    number = _number(value)
    return int(number) if math.isfinite(number) and number >= 0 and number == int(number) else None


def _text(value: object) -> str:
    """Text that can be written again: half of a surrogate pair becomes a question mark."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""
