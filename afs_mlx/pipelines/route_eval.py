"""All routers on the same labelled queries, beside each other; what is not fitted here is said, not left out."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from afs_mlx.core.errors import MissingError
from afs_mlx.core.files import write_json
from afs_mlx.core.manifest import input_file, provenance
from afs_mlx.engine.bases.location import BaseFolder
from afs_mlx.experts.routing import Router
from afs_mlx.experts.routing.choosing import NEED_A_BASE, ROUTERS, router_named
from afs_mlx.experts.routing.head import load_head
from afs_mlx.experts.routing.learned import shipped_manifest
from afs_mlx.experts.routing.report import RouterReport, Timed, report
from afs_mlx.experts.routing.rows import LabelledQuery, read_rows
from afs_mlx.schema.expert import Expert

TEST = "evals/suites/routing-test.jsonl"


@dataclass(frozen=True)
class RouteEvalConfig:
    """`test` holds labelled queries that no router was fitted on; `base` is for head and mean, None leaves them out."""

    test: Path
    experts: dict[str, Expert]
    out: Path
    base: BaseFolder | None = None
    routers: Sequence[str] = ROUTERS


@dataclass(frozen=True)
class Routing:
    """One more query went through a router."""

    router: str
    done: int
    total: int


@dataclass(frozen=True)
class RouteEvalResult:
    """The reports by router, and why others are missing."""

    path: Path
    reports: list[RouterReport]
    missing: dict[str, str]


def route_eval(config: RouteEvalConfig, on_event: Callable[[Routing], None]) -> RouteEvalResult:
    """Route every query by every router, one at a time as a person would ask, and write the figures."""
    rows = read_rows(config.test)
    reports: list[RouterReport] = []
    missing: dict[str, str] = {}
    for name in config.routers:
        try:
            router = _router(name, config)
        except MissingError as error:
            missing[name] = str(error)
            continue
        reports.append(report(name, rows, _timed(router, rows, on_event)))
    record = {
        **provenance("route eval"),
        "inputs": [input_file(config.test, len(rows))],
        "router_model": shipped_manifest().model,
        "base": config.base.identity if config.base else None,
        "reports": [found.model_dump(mode="json") for found in reports],
        "missing": missing,
    }
    write_json(config.out, record)
    return RouteEvalResult(config.out, reports, missing)


def _timed(router: Router, rows: Sequence[LabelledQuery], on_event: Callable[[Routing], None]) -> list[Timed]:
    router.routes([rows[0].query])  # what is read once is read here
    found: list[Timed] = []
    for row in rows:
        began = time.perf_counter()
        [route] = router.routes([row.query])
        found.append(Timed(route, time.perf_counter() - began))
        on_event(Routing(router.name, len(found), len(rows)))
    return found


def _router(name: str, config: RouteEvalConfig) -> Router:
    if name not in NEED_A_BASE:
        return router_named(name, config.experts)
    if config.base is None:
        raise MissingError("no base was named", name, "afs-mlx route eval --base BASE")
    base = config.base
    head = load_head(base.identity["weights_sha256"], base.id, shipped_manifest().model["sha256"])
    from afs_mlx.engine.bases.loading import load_base
    from afs_mlx.engine.inference.states import query_states

    loaded = load_base(base.folder)
    return router_named(
        name, config.experts, head, lambda texts: query_states(loaded, texts, head.fitted.layer).tolist()
    )
