"""An evaluation case and what came of it."""

from typing import Any

from pydantic import Field

from afs_mlx.core.config import StrictModel


class Case(StrictModel):
    """One question of a suite. `facts` is what its scorer needs; no answer stands in it that the model would see."""

    id: str
    question: str
    facts: dict[str, Any] = Field(default_factory=dict)


class CaseResult(StrictModel):
    """An answer and its verdict: `passed` is None when it could not be verified here, and `why` says so."""

    id: str
    answer: str
    passed: bool | None
    checks: dict[str, bool] = Field(default_factory=dict)
    why: str
