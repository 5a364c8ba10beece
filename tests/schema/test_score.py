"""A score cannot leave [0, 1], and its interval is Wilson's."""

import math

import pytest
from pydantic import ValidationError

from afs_mlx.schema.score import Score


@pytest.mark.parametrize(
    ("passed", "n", "low", "high"),
    [
        # Published values: R's prop.test(x, n, correct = FALSE), statsmodels' proportion_confint(method="wilson").
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (1, 10, 0.0179, 0.4042),
        (8, 10, 0.4902, 0.9433),
        (0, 1, 0.0, 0.7935),
        (1, 1, 0.2065, 1.0),
        (0, 20, 0.0, 0.1611),
        # Newcombe (1998), table I: 81/263, 15/148, 0/20, 1/29 by the score method.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_against_published_values(passed: int, n: int, low: float, high: float) -> None:
    score = Score.of(passed, n)
    assert score.value == passed / n
    assert score.n == n
    assert score.low == pytest.approx(low, abs=5e-5)
    assert score.high == pytest.approx(high, abs=5e-5)


def test_every_small_score_is_a_share_with_an_interval_around_it() -> None:
    for n in range(1, 120):
        for passed in range(n + 1):
            score = Score.of(passed, n)
            assert 0 <= score.low <= score.value <= score.high <= 1
            mirrored = Score.of(n - passed, n)
            assert math.isclose(score.low, 1 - mirrored.high, abs_tol=1e-12)


def test_more_cases_make_the_interval_narrower() -> None:
    widths = [(s := Score.of(n // 2, n)).high - s.low for n in (2, 10, 100, 10_000)]
    assert widths == sorted(widths, reverse=True)
    assert Score.of(10**9, 10**9).low <= 1


@pytest.mark.parametrize(("passed", "n"), [(11, 10), (-1, 10), (0, 0), (1, 0), (0, -1), (-2, -1)])
def test_impossible_counts(passed: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"{passed} of {n} cases cannot have passed"):
        Score.of(passed, n)


@pytest.mark.parametrize(
    "fields",
    [
        {"value": 2.0, "n": 1, "low": 0.0, "high": 1.0},
        {"value": 1.0000001, "n": 1, "low": 0.0, "high": 1.0},
        {"value": -0.1, "n": 1, "low": 0.0, "high": 1.0},
        {"value": 0.5, "n": 0, "low": 0.0, "high": 1.0},
        {"value": 0.5, "n": 1, "low": 0.6, "high": 1.0},
        {"value": 0.5, "n": 1, "low": 0.0, "high": 0.4},
        {"value": 0.5, "n": 1, "low": 0.0, "high": 1.5},
        {"value": float("nan"), "n": 1, "low": 0.0, "high": 1.0},
        {"value": 0.5, "n": 1, "low": float("nan"), "high": 1.0},
        {"value": 0.5, "n": 1},
    ],
)
def test_two_hundred_percent_cannot_be_represented(fields: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Score.model_validate(fields)


def test_a_score_survives_its_file() -> None:
    score = Score.of(3, 7)
    assert Score.model_validate_json(score.model_dump_json()) == score


def test_text() -> None:
    assert str(Score.of(5, 10)) == "0.50 [0.24, 0.76] n=10"
