"""Asks every case of a suite and scores the answers."""

from collections.abc import Callable, Iterator, Sequence

from afs_mlx.evaluation.suites import Suite
from afs_mlx.schema.case import CaseResult
from afs_mlx.schema.score import Score

type Ask = Callable[[Sequence[str], int, Callable[[str], bool]], Iterator[tuple[int, str]]]
"""Questions, the longest answer in tokens, and whether an answer so far is enough → (index, answer), in any order."""


def run_suite(suite: Suite, ask: Ask, on_case: Callable[[CaseResult, int, int], None]) -> list[CaseResult]:
    """Every case's result in the suite's order; `on_case(result, done, total)` after each answer."""
    results: dict[int, CaseResult] = {}
    questions = [case.question for case in suite.cases]
    for index, answer in ask(questions, suite.header.max_tokens, suite.scorer.enough):
        results[index] = suite.scorer.score(suite.cases[index], answer)
        on_case(results[index], len(results), len(suite.cases))
    missing = [case.id for index, case in enumerate(suite.cases) if index not in results]
    if missing:
        raise RuntimeError(f"no answer came for {', '.join(missing)}")
    return [results[index] for index in range(len(suite.cases))]


def overall(results: Sequence[CaseResult]) -> Score | None:
    """The share of cases passed; None when any could not be verified, since a share of the rest would mislead."""
    verdicts = [result.passed for result in results]
    if not verdicts or any(verdict is None for verdict in verdicts):
        return None
    return Score.of(sum(bool(verdict) for verdict in verdicts), len(verdicts))


def check_scores(results: Sequence[CaseResult]) -> dict[str, Score]:
    """For each check, the share of all cases that met it: a case that failed earlier met none of the later ones."""
    names = list(dict.fromkeys(name for result in results for name in result.checks))
    return {name: Score.of(sum(result.checks.get(name, False) for result in results), len(results)) for name in names}
