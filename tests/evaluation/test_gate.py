"""The gate: what is worse, too low or not proven is not shipped by accident."""

import pytest

from afs_mlx.evaluation.gate import Measured, gate
from afs_mlx.schema.score import Score


def of(passed: int | None, **checks: int) -> Measured | None:
    if passed is None:
        return None
    return Measured(Score.of(passed, 10), {name: Score.of(met, 10) for name, met in checks.items()})


@pytest.mark.parametrize(
    ("score", "threshold", "before", "passed", "reason"),
    [
        (7, 0.5, None, True, "0.70 reaches the threshold 0.50"),
        (5, 0.5, None, True, "0.50 reaches the threshold 0.50"),
        (4, 0.5, None, False, "0.40 is below the threshold 0.50"),
        (7, 0.5, 6, True, "0.70 reaches the threshold 0.50"),
        (7, 0.5, 7, True, "0.70 reaches the threshold 0.50"),
        (7, 0.5, 8, False, "0.70 is below the 0.80 before it"),
        (4, 0.5, 3, False, "0.40 is below the threshold 0.50"),
        (1, 0.5, 9, False, "0.10 is below the 0.90 before it"),
        (0, 0.0, None, True, "0.00 reaches the threshold 0.00"),
        (0, 0.0, 1, False, "0.00 is below the 0.10 before it"),
        (10, 1.0, 10, True, "1.00 reaches the threshold 1.00"),
        (None, 0.0, None, False, "not verified"),
        (None, 0.0, 0, False, "not verified"),
    ],
)
def test_the_real_base(score: int | None, threshold: float, before: int | None, passed: bool, reason: str) -> None:
    verdict = gate(of(score), threshold, of(before), demo=False)
    assert (verdict.passed, verdict.reason) == (passed, reason)
    assert verdict.threshold == threshold
    assert verdict.before == (None if before is None else before / 10)


@pytest.mark.parametrize(
    ("score", "before", "passed", "reason"),
    [
        (1, 0, True, "demo: 0.10 is above the base's 0.00; the threshold 0.50 is for the real base"),
        (0, 0, False, "demo: 0.00 is not above the base's 0.00; the threshold 0.50 is for the real base"),
        (9, 9, False, "demo: 0.90 is not above the base's 0.90; the threshold 0.50 is for the real base"),
        (1, 2, False, "0.10 is below the 0.20 before it"),
        (9, None, False, "demo: there is no score of the base to be held against"),
        (0, None, False, "demo: there is no score of the base to be held against"),
        (None, 0, False, "not verified"),
        (None, None, False, "not verified"),
    ],
)
def test_a_demo_has_to_beat_its_base_and_nothing_more(
    score: int | None, before: int | None, passed: bool, reason: str
) -> None:
    verdict = gate(of(score), 0.5, of(before), demo=True)
    assert (verdict.passed, verdict.reason) == (passed, reason)


@pytest.mark.parametrize(
    ("after", "before", "passed", "said"),
    [
        ({"block": 9, "assembles": 7, "equal": 2}, {"block": 1, "assembles": 0}, True, "equal 0.20 is above its 0.00"),
        ({"block": 9, "assembles": 7}, {"block": 1, "assembles": 6}, True, "assembles 0.70 is above its 0.60"),
        ({"block": 9, "assembles": 6}, {"block": 1, "assembles": 7}, False, "assembles 0.60 is below its 0.70"),
        ({"block": 9, "assembles": 7}, {"block": 9, "assembles": 7}, False, "0.00 is not above the base's 0.00"),
        ({"code_block": 9}, {"code_block": 1}, True, "code block 0.90 is above its 0.10"),
    ],
)
def test_where_a_demo_scores_as_its_base_the_last_check_that_differs_decides(
    after: dict[str, int], before: dict[str, int], passed: bool, said: str
) -> None:
    verdict = gate(of(0, **after), 0.5, of(0, **before), demo=True)
    assert verdict.passed is passed
    assert said in verdict.reason
    assert gate(of(0, **after), 0.5, of(0, **before), demo=False).passed is False, "only a demo"
    assert gate(of(0, **after), 0.5, of(1, **before), demo=True).passed is False, "the score comes first"


@pytest.mark.parametrize("demo", [False, True])
def test_no_verdict_passes_that_got_worse(demo: bool) -> None:
    for before in range(11):
        for score in range(before):
            for threshold in (0.0, 0.05, 1.0):
                assert not gate(of(score), threshold, of(before), demo=demo).passed
