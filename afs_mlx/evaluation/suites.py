"""Reads a suite: a TOML file that names its scorer, and its cases beside it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from afs_mlx.core.config import StrictModel, load_toml, validate
from afs_mlx.core.errors import AfsError, closest, problems
from afs_mlx.core.jsonl import read_jsonl
from afs_mlx.evaluation.scorers import optimisation
from afs_mlx.schema.case import Case, CaseResult


class SuiteHeader(StrictModel):
    """evals/suites/<name>.toml."""

    title: str
    scorer: str
    cases: str = Field(description="a JSONL file beside the suite")
    max_tokens: int = Field(default=256, ge=1, description="the longest answer")
    measures: str = Field(description="what a score on this suite says, in a sentence")
    limits: str = Field(default="", description="what it does not say")


@dataclass(frozen=True)
class Scorer:
    """How a suite's rows become cases, and answers verdicts."""

    case_of: Callable[[dict[str, Any]], Case]
    score: Callable[[Case, str], CaseResult]
    enough: Callable[[str], bool]
    """Whether nothing that follows could change the verdict, so that generating may end."""


SCORERS = {"optimisation": Scorer(optimisation.case_of, optimisation.score, optimisation.enough)}


@dataclass(frozen=True)
class Suite:
    """A suite ready to be asked."""

    name: str
    header: SuiteHeader
    scorer: Scorer
    cases: list[Case]
    files: tuple[Path, ...]


def load_suite(path: Path) -> Suite:
    """Read a suite's TOML and its cases. Raises AfsError for an unknown scorer, bad rows, an id that stands twice."""
    header = validate(SuiteHeader, load_toml(path), str(path))
    scorer = SCORERS.get(header.scorer)
    if scorer is None:
        raise AfsError(f"there is no scorer {header.scorer!r}", str(path), closest(header.scorer, list(SCORERS)))
    rows = path.parent / header.cases
    cases = read_jsonl(rows, scorer.case_of)
    seen: set[str] = set()
    twice = [case.id for case in cases if case.id in seen or seen.add(case.id)]  # type: ignore[func-returns-value]
    if twice:
        raise problems(
            [f"id {name!r} stands twice" for name in twice], "bad suite", str(rows), "give each case its own id"
        )
    return Suite(path.stem, header, scorer, cases, (path, rows))
