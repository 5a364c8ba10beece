"""A score is a number in [0, 1] with its sample count and an interval; "200 %" cannot be represented."""

import math
from typing import Self

from pydantic import Field, model_validator

from afs_mlx.core.config import StrictModel

Z_95 = 1.959963984540054  # the normal quantile of a two-sided 95 % interval


class Score(StrictModel):
    """A share of `n` cases with a 95 % confidence interval [low, high]."""

    value: float = Field(ge=0, le=1)
    n: int = Field(ge=1)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def _interval_holds_the_value(self) -> Self:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"the interval [{self.low}, {self.high}] does not hold the value {self.value}")
        return self

    @classmethod
    def of(cls, passed: int, n: int) -> "Score":
        """Wilson's score interval (E. B. Wilson, 1927), which stays within [0, 1] and is honest at 0 and n."""
        if not 0 <= passed <= n or n == 0:
            raise ValueError(f"{passed} of {n} cases cannot have passed")
        share = passed / n
        spread = 1 + Z_95**2 / n
        middle = (share + Z_95**2 / (2 * n)) / spread
        half = Z_95 * math.sqrt(share * (1 - share) / n + Z_95**2 / (4 * n * n)) / spread
        # Rounding must not push the bound past the value at 0 and n.
        return cls(value=share, n=n, low=max(0.0, min(share, middle - half)), high=min(1.0, max(share, middle + half)))

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}] n={self.n}"
