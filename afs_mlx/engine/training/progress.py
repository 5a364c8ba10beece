"""Where a training stands, in plain numbers: what a checkpoint holds beside its arrays."""

import math
import statistics
from dataclasses import dataclass, field
from typing import Self

from pydantic import BaseModel, ConfigDict

RECENT = 20  # losses that a spike is measured against


class Numbers(BaseModel):
    """A Progress on disk. Infinity, which JSON has not, is None."""

    model_config = ConfigDict(extra="forbid", strict=True)

    step: int
    tokens_seen: int
    training_s: float
    elapsed_s: float
    validation_s: float
    validations: int
    base_loss: float
    best_loss: float
    best_step: int
    worse_in_a_row: int
    last_loss: float | None
    rate_factor: float
    rollbacks: int
    skipped: list[int]
    recent: list[float]
    peak_memory_gb: float


@dataclass
class Progress:
    """`step` optimizer steps are behind; a step whose rows were given up counts as one.

    `training_s` is time in steps, `validation_s` in validations, `elapsed_s` all of it; `skipped` are the steps whose
    rows are left out since a rollback, `recent` the last losses.
    """

    step: int = 0
    tokens_seen: int = 0
    training_s: float = 0.0
    elapsed_s: float = 0.0
    validation_s: float = 0.0
    validations: int = 0
    base_loss: float = math.inf
    best_loss: float = math.inf
    best_step: int = 0
    worse_in_a_row: int = 0
    last_loss: float | None = None
    rate_factor: float = 1.0
    rollbacks: int = 0
    skipped: list[int] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)
    peak_memory_gb: float = 0.0

    def as_json(self) -> str:
        return Numbers.model_validate(vars(self)).model_dump_json(indent=2)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ValueError for anything else than a whole Progress."""
        return cls(**Numbers.model_validate_json(text).model_dump())

    def copy(self) -> "Progress":
        return Progress(**{**vars(self), "skipped": [*self.skipped], "recent": [*self.recent]})

    def note_loss(self, loss: float) -> None:
        self.last_loss = loss
        self.recent = [*self.recent, loss][-RECENT:]

    def spike(self, loss: float, factor: float) -> str:
        """Why `loss` is not to be trusted; empty when it is."""
        if not math.isfinite(loss):
            return "the loss is not finite"
        if factor == 0 or len(self.recent) < RECENT // 2:
            return ""
        usual = statistics.median(self.recent)
        # A small loss may well triple from one batch to the next.
        return f"the loss rose from {usual:.3g} to {loss:.3g}" if loss > max(usual * factor, usual + 1.0) else ""

    def eta_s(self, total_steps: int, validations_left: int) -> float:
        """Seconds that the steps and validations left will take at the speed so far."""
        steps = self.training_s / max(1, self.step - len(self.skipped)) * (total_steps - self.step)
        return steps + self.validation_s / max(1, self.validations) * validations_left
