"""The figures of a router, from routes whose shares can be counted by hand."""

import pytest

from afs_mlx.experts.routing.report import Timed, report
from afs_mlx.experts.routing.route import Route
from afs_mlx.experts.routing.rows import LabelledQuery


def row(expert: str) -> LabelledQuery:
    return LabelledQuery(query="q", expert=expert, kind="short" if expert == "din" else "long")


def timed(expert: str, likeliest: str, confidence: float, ms: float = 1.0) -> Timed:
    scores = {likeliest: confidence, "other": round(1 - confidence, 4)}
    scores.setdefault("general", 0.0)
    return Timed(Route(expert, scores.get(expert, 0.0), scores, "", likeliest=likeliest), ms / 1e3)


def test_the_figures() -> None:
    rows = [row("din"), row("din"), row("majora"), row("farore"), row("general"), row("general")]
    found = [
        timed("din", "din", 0.9),
        timed("general", "din", 0.4),  # right, but not sure enough
        timed("din", "din", 0.8),  # taken for the other
        timed("farore", "farore", 0.7, 9.0),
        timed("general", "general", 0.9),
        timed("din", "din", 0.6),
    ]
    result = report("r", rows, found)
    assert result.accuracy.value == 3 / 4
    assert result.routed.value == 2 / 4
    assert result.where_sent is not None
    assert result.where_sent.value == 2 / 4
    assert result.coverage.value == 3 / 4
    assert result.out_of_scope is not None
    assert result.out_of_scope.value == 1 / 2
    assert result.out_of_scope_at_90 == 0.5  # at 0.4, where all four are sent
    assert (result.p95_ms, result.median_ms) == (9.0, 1.0)
    assert result.by_expert["din"].value == 1 / 2
    assert result.by_kind["short"].n == 2
    assert result.borders[0].model_dump() == {
        "pair": ("din", "majora"), "right": 1, "swapped": 1, "elsewhere": 1,
    }  # fmt: skip
    assert result.confusion["general"] == {"din": 1, "general": 1}
    # 0.9 twice right, 0.8 wrong, 0.7 right, 0.6 wrong, 0.4 right
    assert result.calibration_error == pytest.approx((0.2 + 0.8 + 0.3 + 0.6 + 0.6) / 6, abs=1e-4)


def test_keywords_have_no_probabilities() -> None:
    found = [Timed(Route("din", 0.5, {"din": 2, "majora": 2}, ""), 0.001), Timed(Route("general", 0, {}, ""), 0.001)]
    result = report("keywords", [row("din"), row("general")], found)
    assert result.accuracy.value == 1
    assert result.calibration_error == pytest.approx(0.75)
