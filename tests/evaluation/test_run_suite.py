"""Asking a suite: answers in any order, results in the suite's, and shares that cannot mislead."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from afs_mlx.evaluation.run import check_scores, overall, run_suite
from afs_mlx.evaluation.suites import Scorer, Suite, SuiteHeader
from afs_mlx.schema.case import Case, CaseResult
from afs_mlx.schema.score import Score

type Enough = Callable[[str], bool]


def equals_fact(case: Case, answer: str) -> CaseResult:
    right = answer == case.facts["right"]
    return CaseResult(id=case.id, answer=answer, passed=right, checks={"right": right}, why="")


def long_enough(answer: str) -> bool:
    return len(answer) > 1


def suite_of(count: int) -> Suite:
    cases = [Case(id=f"c{n}", question=f"q{n}", facts={"right": f"a{n}"}) for n in range(count)]
    header = SuiteHeader(title="t", scorer="s", cases="c", measures="m", max_tokens=33)
    return Suite("s", header, Scorer(lambda row: cases[0], equals_fact, long_enough), cases, (Path("s.toml"),))


def result(passed: bool | None, **checks: bool) -> CaseResult:
    return CaseResult(id="x", answer="", passed=passed, checks=checks, why="")


def test_answers_in_any_order_are_scored_in_the_suites() -> None:
    asked: list[tuple[list[str], int, Enough]] = []

    def ask(questions: Sequence[str], max_tokens: int, enough: Enough) -> Iterator[tuple[int, str]]:
        asked.append((list(questions), max_tokens, enough))
        yield from [(2, "a2"), (0, "a0"), (1, "wrong")]

    events: list[tuple[str, int, int]] = []
    results = run_suite(suite_of(3), ask, lambda r, done, total: events.append((r.id, done, total)))
    assert [(r.id, r.passed) for r in results] == [("c0", True), ("c1", False), ("c2", True)]
    assert asked == [(["q0", "q1", "q2"], 33, long_enough)]
    assert events == [("c2", 1, 3), ("c0", 2, 3), ("c1", 3, 3)]


def test_a_case_without_an_answer_is_no_silent_gap() -> None:
    with pytest.raises(RuntimeError, match="no answer came for c1, c2"):
        run_suite(suite_of(3), lambda *_: iter([(0, "a0")]), lambda *_: None)


def test_overall_is_the_share_of_cases_passed() -> None:
    assert overall([result(True), result(False), result(True)]) == Score.of(2, 3)
    assert overall([result(False)]) == Score.of(0, 1)


def test_one_unverified_case_leaves_no_score() -> None:
    assert overall([result(True), result(None), result(True)]) is None
    assert overall([]) is None


def test_checks_count_over_all_cases() -> None:
    """A share of the cases that got so far could be 1.0 with one survivor."""
    results = [
        result(True, block=True, assembles=True, shorter=True),
        result(False, block=True, assembles=False),
        result(False, block=False),
        result(False, block=False),
    ]
    assert check_scores(results) == {"block": Score.of(2, 4), "assembles": Score.of(1, 4), "shorter": Score.of(1, 4)}
    assert check_scores([]) == {}
