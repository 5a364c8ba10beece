"""Stored results, and what they say about shipping: which count for a candidate, the newest, and what it follows.

Reads result files; where they lie, and what is to be shipped, the caller says.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from afs_mlx.core.errors import AfsError
from afs_mlx.core.files import read_json
from afs_mlx.evaluation.gate import Verdict
from afs_mlx.schema.score import Score


class StoredResult(BaseModel):
    """A result file as far as shipping needs it. `adapter_sha256` is empty in files of older versions."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    made_at: str
    suite: str
    label: str
    inputs: list[dict[str, Any]]
    base: dict[str, str]
    system: str
    shots: list[dict[str, str]] = []
    demo: bool
    adapter: str
    adapter_sha256: str = ""
    score: Score | None
    gate: Verdict


@dataclass(frozen=True)
class Candidate:
    """What is to be shipped, in a result's terms: what it was asked of, and the adapter's file as it is now.

    `changed_at` is when that file was last written, UTC, for results that hold no hash.
    """

    label: str
    suite: str
    inputs: list[dict[str, Any]]
    base: dict[str, str]
    system: str
    shots: list[dict[str, str]]
    threshold: float
    adapter: str = ""
    adapter_sha256: str = ""
    changed_at: str = ""


@dataclass(frozen=True)
class Earlier:
    """A score that the candidate must not fall below, and whose it is."""

    whose: str
    made_at: str
    score: Score


@dataclass(frozen=True)
class Judgement:
    """Whether a candidate may be shipped: `reasons` against it, none if it may. `result` is None where none counts.

    `before` is the highest score that the candidate is held against.
    """

    path: Path | None
    result: StoredResult | None
    before: Earlier | None
    reasons: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.reasons


def read_result(path: Path) -> StoredResult:
    """One result file; raises AfsError for one that is damaged or absent."""
    try:
        return StoredResult.model_validate(read_json(path, "the evaluation result"))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise AfsError(f"not a whole evaluation result: {key}: {first['msg']}", str(path), "evaluate again") from error


def judge(
    candidate: Candidate, path: Path, others: Sequence[StoredResult] = (), deployed: Earlier | None = None
) -> Judgement:
    """Hold the candidate's newest result, the file `path`, against the gate and against what came before.

    That is the newest earlier one of `others`, results of the same version's other runs, and what is `deployed` now. A
    result that was asked of other weights, of a changed suite or under another prompt does not count.
    """
    if not path.is_file():
        return Judgement(path, None, None, (f"{candidate.label} was never evaluated on {candidate.suite}",))
    try:
        result = read_result(path)
    except AfsError as error:
        return Judgement(path, None, None, (error.what,))
    if stale := _stale(candidate, result):
        return Judgement(path, None, None, tuple(f"the result of {result.made_at} does not count: {x}" for x in stale))
    held = [one for one in (_previous(candidate, result, others), deployed) if one is not None]
    before = max(held, key=lambda one: one.score.value, default=None)
    if result.score is None:
        return Judgement(path, result, before, ("the newest result is not verified",))
    value, reasons = result.score.value, []
    if before is not None and value < before.score.value:
        reasons.append(f"{value:.2f} is below the {before.score.value:.2f} of {before.whose} ({before.made_at})")
    if not result.gate.passed:
        reasons.append(f"the gate was not passed: {result.gate.reason}")
    elif not result.demo and value < candidate.threshold:
        reasons.append(f"{value:.2f} is below the threshold, which is {candidate.threshold:.2f} now")
    return Judgement(path, result, before, tuple(reasons))


def _previous(candidate: Candidate, result: StoredResult, others: Sequence[StoredResult]) -> Earlier | None:
    """The newest result before this one that measures the same: these cases, this base."""
    found = [
        other
        for other in others
        if other.score is not None
        and other.made_at < result.made_at
        and (other.inputs, other.base) == (candidate.inputs, candidate.base)
    ]
    newest = max(found, key=lambda other: other.made_at, default=None)
    if newest is None or newest.score is None:
        return None
    return Earlier(newest.label, newest.made_at, newest.score)


def _stale(candidate: Candidate, result: StoredResult) -> list[str]:
    """Why a result says nothing about the candidate as it is now."""
    found = []
    if result.inputs != candidate.inputs:
        found.append(f"the suite {candidate.suite} was changed since")
    if result.base != candidate.base:
        names = [base.get("id", "") for base in (result.base, candidate.base)]
        found.append(
            f"it is of {names[0]}, not of {names[1]}" if names[0] != names[1] else f"{names[0]} has other weights now"
        )
    if (result.system, result.shots) != (candidate.system, candidate.shots):
        found.append("the prompt was changed since")
    if result.adapter != candidate.adapter:
        found.append(f"it is of {result.adapter or 'the bare base'}, not of {candidate.adapter or 'the bare base'}")
    elif result.adapter_sha256 != candidate.adapter_sha256 and result.adapter_sha256:
        found.append("the adapter was changed since")
    elif not result.adapter_sha256 and result.made_at < candidate.changed_at:
        found.append("the adapter was written after it")
    return found
