"""Scores din's answers by execution: the routine does the same under the case's entry state, cheaper for its goal.

Both routines are assembled and run from many states; see `afs_mlx.snes.equivalence`.
"""

from typing import Any

from afs_mlx.schema.case import Case, CaseResult
from afs_mlx.schema.optimisation import EntryState, OptimisationPair, normalised
from afs_mlx.snes.code_block import assembly_of, code_blocks
from afs_mlx.snes.equivalence.checker import Report
from afs_mlx.snes.equivalence.judging import Judgement, judge


def case_of(row: dict[str, Any]) -> Case:
    """A row of an optimisation set as a case; the reference answer stays out of the question."""
    pair = OptimisationPair.model_validate(row)
    return Case(
        id=pair.id,
        question=pair.question(),
        facts={
            "code": pair.code,
            "goal": pair.goal,
            "family": pair.family,
            "entry": pair.entry.model_dump(exclude_none=True),
            "live": list(pair.live),
        },
    )


def score(case: Case, answer: str) -> CaseResult:
    """The verdict on one answer; `passed` is None where it could not be verified."""
    code = assembly_of(answer)
    if code is None or not normalised(code):
        return _result(case, answer, False, {"code_block": False}, "no code block in the answer")
    entry = EntryState.model_validate(case.facts["entry"])
    judgement = judge(case.facts["code"], code, entry, live=tuple(case.facts["live"]))
    checks = {"code_block": True}
    if judgement.verdict in ("not verified", "not verifiable"):
        return _result(case, answer, None, checks, f"not verified: {judgement.why}")
    checks["assembles"] = judgement.verdict != "does not assemble"
    if judgement.report is None:
        return _result(case, answer, False, checks, f"does not assemble: {judgement.why}")
    # A line that no state leads to could do anything: one of the answer is its own fault, one of the case nobody's.
    unreached = {routine for routine, _ in judgement.report.unreached}
    if "reference" in unreached:
        return _result(case, answer, None, checks, f"not verified: {judgement.why}")
    checks["equal"] = judgement.verdict == "equal" and not unreached
    if not checks["equal"]:
        return _result(case, answer, False, checks, f"{judgement.verdict}: {judgement.why}{_note(judgement)}")
    checks["cheaper"] = judgement.report.cheaper(case.facts["goal"])
    why = f"{'' if checks['cheaper'] else f'not fewer {case.facts["goal"]}: '}{_costs(judgement.report)}"
    return _result(case, answer, checks["cheaper"], checks, why)


def enough(answer: str) -> bool:
    """The first code block is judged: an answer may end once it is closed. A line still being written closes none."""
    return bool(code_blocks(answer.rpartition("\n")[0]))


def _result(case: Case, answer: str, passed: bool | None, checks: dict[str, bool], why: str) -> CaseResult:
    return CaseResult(id=case.id, answer=answer, passed=passed, checks=checks, why=why)


def _note(judgement: Judgement) -> str:
    """The first thing noticed in execution: it mostly explains a routine that does not come back."""
    notes = judgement.notes()
    return f" ({notes[0]})" if notes else ""


def _costs(report: Report) -> str:
    if report.reference is None or report.candidate is None:
        return ""
    before, after = report.reference, report.candidate
    cycles = f"{before.cycles.mean:.1f} → {after.cycles.mean:.1f} cycles"
    return f"{before.size_bytes} → {after.size_bytes} bytes, {cycles}"
