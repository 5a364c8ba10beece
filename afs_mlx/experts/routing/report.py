"""What labelled queries say of a router: shares with intervals, calibration, confusions, speed. Runs no router."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from afs_mlx.core.config import StrictModel
from afs_mlx.experts.routing.calibration import expected_calibration_error
from afs_mlx.experts.routing.route import FALLBACK, Route
from afs_mlx.experts.routing.rows import LabelledQuery
from afs_mlx.schema.score import Score

# Who is easily mistaken for whom: better code or a measurement, a fault or an explanation, new code or files.
BORDERS = (("din", "majora"), ("farore", "veran"), ("nayru", "farore-afs"))
COVERAGE = 0.9


class Border(StrictModel):
    """Queries for one of two experts: right, taken for the other, sent elsewhere."""

    pair: tuple[str, str]
    right: int
    swapped: int
    elsewhere: int


class RouterReport(StrictModel):
    """The figures of one router.

    `accuracy` is the share of in-scope queries whose likeliest class is right, before abstention; `routed` that of
    in-scope queries that reach their expert, `where_sent` that of queries sent to an expert that were rightly sent;
    `coverage` the share of in-scope queries that are sent to any; `out_of_scope` the share of the others that are not.
    `out_of_scope_at_90` is the latter where the threshold is moved to a coverage of 0.9, which only the answers tell.
    """

    router: str
    n: int
    accuracy: Score
    routed: Score
    where_sent: Score | None
    coverage: Score
    out_of_scope: Score | None
    out_of_scope_at_90: float | None
    calibration_error: float
    p95_ms: float
    median_ms: float
    by_expert: dict[str, Score]
    by_kind: dict[str, Score]
    borders: list[Border]
    confusion: dict[str, dict[str, int]]


@dataclass(frozen=True)
class Timed:
    """A route and how long it took."""

    route: Route
    elapsed_s: float


def report(router: str, rows: Sequence[LabelledQuery], found: Sequence[Timed]) -> RouterReport:
    """All figures; at least one row has to be in scope."""
    pairs = [(row, timed.route) for row, timed in zip(rows, found, strict=True)]
    inside = [(row, route) for row, route in pairs if row.expert != FALLBACK]
    outside = [(row, route) for row, route in pairs if row.expert == FALLBACK]
    sent = [(row, route) for row, route in pairs if route.expert != FALLBACK]
    times = sorted(timed.elapsed_s * 1e3 for timed in found)
    confusion: dict[str, Counter[str]] = {}
    for row, route in pairs:
        confusion.setdefault(row.expert, Counter())[route.expert] += 1
    experts, kinds = sorted({row.expert for row in rows}), sorted({row.kind for row in rows if row.kind})
    return RouterReport(
        router=router,
        n=len(rows),
        accuracy=_score([(route.likeliest or route.expert) == row.expert for row, route in inside]),
        routed=_score([route.expert == row.expert for row, route in inside]),
        where_sent=_score([route.expert == row.expert for row, route in sent]) if sent else None,
        coverage=_score([route.expert != FALLBACK for _, route in inside]),
        out_of_scope=_score([route.expert == FALLBACK for _, route in outside]) if outside else None,
        out_of_scope_at_90=_recall_at(inside, outside) if outside else None,
        calibration_error=round(_calibration_error(pairs), 4),
        p95_ms=round(times[math.ceil(0.95 * len(times)) - 1], 3),
        median_ms=round(times[len(times) // 2], 3),
        by_expert={e: _score([route.expert == e for row, route in pairs if row.expert == e]) for e in experts},
        by_kind={k: _score([route.expert == row.expert for row, route in pairs if row.kind == k]) for k in kinds},
        borders=[_border(pair, pairs) for pair in BORDERS],
        confusion={name: dict(sorted(counts.items())) for name, counts in sorted(confusion.items())},
    )


def _score(right: Sequence[bool]) -> Score:
    return Score.of(sum(right), len(right))


def _surest(route: Route) -> float:
    """How sure the router is that the query is for some expert."""
    best = route.likeliest or route.expert
    return 0.0 if best == FALLBACK else route.scores[best] if route.likeliest else route.confidence


def _recall_at(inside: Sequence[tuple[LabelledQuery, Route]], outside: Sequence[tuple[LabelledQuery, Route]]) -> float:
    ranked = sorted((_surest(route) for _, route in inside), reverse=True)
    least = ranked[math.ceil(COVERAGE * len(ranked)) - 1]
    return round(sum(_surest(route) < least for _, route in outside) / len(outside), 4)


def _calibration_error(pairs: Sequence[tuple[LabelledQuery, Route]]) -> float:
    return expected_calibration_error(
        [route.scores[route.likeliest] if route.likeliest else route.confidence for _, route in pairs],
        [(route.likeliest or route.expert) == row.expert for row, route in pairs],
    )


def _border(pair: tuple[str, str], pairs: Sequence[tuple[LabelledQuery, Route]]) -> Border:
    of_pair = [(row.expert, route.expert) for row, route in pairs if row.expert in pair]
    right = sum(wanted == got for wanted, got in of_pair)
    swapped = sum(wanted != got and got in pair for wanted, got in of_pair)
    return Border(pair=pair, right=right, swapped=swapped, elsewhere=len(of_pair) - right - swapped)
