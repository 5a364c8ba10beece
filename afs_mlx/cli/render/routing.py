"""How routes and the routers' figures look, and the same as plain data."""

from typing import TYPE_CHECKING, Any

from afs_mlx.cli.render.console import err, out, plain

if TYPE_CHECKING:
    from afs_mlx.experts.routing import Route
    from afs_mlx.pipelines.route_eval import RouteEvalResult
    from afs_mlx.schema.score import Score

BAR = 20


def line(query: str, route: "Route") -> dict[str, Any]:
    """The JSON of one query."""
    return {
        "query": query,
        "expert": route.expert,
        "confidence": round(route.confidence, 4),
        "scores": dict(route.scores),
    }


def why_lines(route: "Route") -> list[str]:
    """The reason, the scores as bars, the words that decided and the margin."""
    lines = [f"{plain(route.reason)}; confidence {route.confidence:.2f}"]
    most = max(route.scores.values(), default=0.0)
    for name, score in route.scores.items():
        lines.append(f"{name:<12} {score:6.4g} {'█' * round(BAR * score / most) if most else ''}".rstrip())
    if len(route.scores) > 1 and route.likeliest:
        first, second = list(route.scores)[:2]
        lines.append(f"margin {route.margin:.2f} between {first} and {second}")
        if route.words:
            lines.append(f"what spoke for {first} (+) or {second} (-):")
            lines += [f"  {weight:+.2f}  {plain(word)}" for word, weight in route.words]
    elif not route.scores:
        lines.append("no keyword hits")
    return lines


def reports_json(result: "RouteEvalResult") -> dict[str, Any]:
    """Everything that was measured."""
    return {
        "reports": [report.model_dump(mode="json") for report in result.reports],
        "missing": result.missing,
        "result": str(result.path),
    }


def show_reports(result: "RouteEvalResult") -> None:
    """One column for each router, then what each mistook."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(f"n = {result.reports[0].n}" if result.reports else "")
    for report in result.reports:
        table.add_column(report.router)
    rows: list[tuple[str, list[str]]] = [
        ("accuracy in scope", [_share(r.accuracy) for r in result.reports]),
        ("reached expert", [_share(r.routed) for r in result.reports]),
        ("right where sent", [_share(r.where_sent) for r in result.reports]),
        ("coverage", [_share(r.coverage) for r in result.reports]),
        ("out of scope held", [_share(r.out_of_scope) for r in result.reports]),
        ("  at .90 coverage", [_number(r.out_of_scope_at_90) for r in result.reports]),
        ("calibration error", [f"{r.calibration_error:.3f}".removeprefix("0") for r in result.reports]),
        ("p95, median ms", [f"{r.p95_ms:.3g}, {r.median_ms:.3g}" for r in result.reports]),
    ]
    for key in ("by_expert", "by_kind"):
        names = dict.fromkeys(name for r in result.reports for name in getattr(r, key))
        rows += [(f"  {name}", [_share(getattr(r, key).get(name)) for r in result.reports]) for name in names]
    for place, border in enumerate(result.reports[0].borders if result.reports else []):
        cells = [f"{b.right}, {b.swapped} swapped" for r in result.reports for b in [r.borders[place]]]
        rows.append((" | ".join(border.pair), cells))
    for name, cells in rows:
        table.add_row(name, *cells)
    out().print(table)
    for name, why in result.missing.items():
        err().print(f"{name}: {plain(why)}", markup=False)


def _share(score: "Score | None") -> str:
    """The share with its 95 % interval, short enough for four columns on 80."""
    if score is None:
        return "–"
    value, low, high = (f"{number:.2f}".removeprefix("0") for number in (score.value, score.low, score.high))
    return f"{value} [{low} {high}]"


def _number(value: float | None) -> str:
    return f"{value:.2f}".removeprefix("0") if value is not None else "–"
