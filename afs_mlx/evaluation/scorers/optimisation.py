"""Scores din's answers: a code block is there, Asar assembles it, it is shorter than the original as assembled.

That the two routines do the same is not checked here: a shorter routine that does something else passes.
"""

from typing import Any

from afs_mlx.schema.case import Case, CaseResult
from afs_mlx.schema.optimisation import OptimisationPair, normalised
from afs_mlx.snes.asar import Assembly, assemble
from afs_mlx.snes.code_block import assembly_of, code_blocks


def case_of(row: dict[str, Any]) -> Case:
    """A row of an optimisation set as a case; the reference answer stays out of the question."""
    pair = OptimisationPair.model_validate(row)
    return Case(
        id=pair.id, question=pair.question(), facts={"code": pair.code, "goal": pair.goal, "family": pair.family}
    )


def score(case: Case, answer: str) -> CaseResult:
    """The verdict on one answer; `passed` is None without Asar."""
    code = assembly_of(answer)
    if code is None or not normalised(code):
        return _failed(case, answer, {"code_block": False}, "no code block in the answer")
    checks = {"code_block": True}
    candidate, original = assemble(code), assemble(str(case.facts["code"]))
    if "unavailable" in (candidate.status, original.status):
        return CaseResult(
            id=case.id, answer=answer, passed=None, checks=checks, why="not verified: Asar is not installed"
        )
    if original.status != "ok":
        return CaseResult(
            id=case.id, answer=answer, passed=None, checks=checks, why="not verified: the case does not assemble"
        )
    checks["assembles"] = candidate.status == "ok"
    if candidate.status != "ok":
        return _failed(case, answer, checks, f"does not assemble: {_first_error(candidate)}")
    checks["shorter"] = 0 < len(candidate.code) < len(original.code)
    sizes = f"{len(original.code)} → {len(candidate.code)} bytes"
    if not checks["shorter"]:
        return _failed(case, answer, checks, f"not shorter: {sizes}")
    return CaseResult(id=case.id, answer=answer, passed=True, checks=checks, why=sizes)


def enough(answer: str) -> bool:
    """The first code block is judged: an answer may end once it is closed. A line still being written closes none."""
    return bool(code_blocks(answer.rpartition("\n")[0]))


def _failed(case: Case, answer: str, checks: dict[str, bool], why: str) -> CaseResult:
    return CaseResult(id=case.id, answer=answer, passed=False, checks=checks, why=why)


def _first_error(assembly: Assembly) -> str:
    first = assembly.errors[0]
    return f"line {first.line}: {first.message}"
