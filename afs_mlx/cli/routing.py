"""`afs-mlx route`: which expert a question goes to, and why; fitting and comparing the routers."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from afs_mlx.cli.errors import handled
from afs_mlx.cli.options import AsJson
from afs_mlx.cli.render.console import emit_json, err, notice, out, step
from afs_mlx.core.errors import UsageError

DEFAULT_COMMAND = "query"
Base = Annotated[str, typer.Option("--base", help="For head and mean: a base id, a model folder, or auto.")]


class _QueryFirst(TyperGroup):
    """`afs-mlx route "…"` is `afs-mlx route query "…"`: what is no command's name is the question."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = [DEFAULT_COMMAND, *args]
        return list(super().parse_args(ctx, args))


app = typer.Typer(
    cls=_QueryFirst,
    help="Say which expert a question goes to: afs-mlx route QUERY [--why], or --file F.jsonl. The word query may be "
    "left out.",
    rich_markup_mode=None,
)


def route(
    query: Annotated[str, typer.Argument(help="The question.")] = "",
    why: Annotated[bool, typer.Option("--why", help="Show the scores and the words that decided.")] = False,
    file: Annotated[
        Path | None, typer.Option("--file", help="JSONL with a field `query`; writes one JSON line each.")
    ] = None,
    router: Annotated[str, typer.Option("--router", help="tfidf, keywords, head or mean.")] = "tfidf",
    base: Base = "auto",
    as_json: AsJson = False,
) -> None:
    """Say which expert a question goes to."""
    from afs_mlx.cli.render.routing import line, why_lines
    from afs_mlx.core.jsonl import read_jsonl
    from afs_mlx.core.paths import Workspace
    from afs_mlx.experts.catalog import Catalog
    from afs_mlx.pipelines.route import RouteConfig
    from afs_mlx.pipelines.route import route as run_route

    if bool(query) == (file is not None):
        raise UsageError(
            "a question or --file is needed, not both", "route", 'afs-mlx route "how many cycles is this?"'
        )
    if any("\ud800" <= char <= "\udfff" for char in query):  # how Python shows an argument's bytes that are no UTF-8
        raise UsageError("QUERY is not UTF-8", "route", "convert it first, for example with iconv -t utf-8")
    queries = read_jsonl(file, _query) if file is not None else [query]
    result = run_route(RouteConfig(queries, Catalog.load(Workspace.find()), router, base))
    for text in result.notices:
        notice(text)
    if file is not None:
        for asked, found in zip(queries, result.routes, strict=True):
            sys.stdout.write(json.dumps(line(asked, found), ensure_ascii=False) + "\n")
        return
    [found] = result.routes
    if as_json:
        words = [{"text": text, "weight": weight} for text, weight in found.words]
        emit_json(
            {**line(query, found), "router": router, "reason": found.reason, "margin": found.margin, "words": words}
        )
        return
    out().print(found.expert, markup=False)
    if why:
        for text in why_lines(found):
            out().print(f"  {text}", markup=False)


def train(
    base: Base = "auto",
    data: Annotated[Path | None, typer.Option("--data", help="Labelled queries instead of the curated ones.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fit the routers head and mean for a base on this machine.

    Needs scikit-learn. They are kept in the cache and used with exactly these weights; the default router needs no
    fitting.
    """
    from afs_mlx.core.paths import Workspace
    from afs_mlx.engine.bases.location import choose_base
    from afs_mlx.experts.catalog import Catalog
    from afs_mlx.pipelines.route_train import DATA, RouteTrainConfig, data_files, route_train
    from afs_mlx.schema.expert import DEFAULT_BASE

    workspace = Workspace.find()
    catalog = Catalog.load(workspace)
    found = choose_base(base, DEFAULT_BASE, catalog.bases)
    if found.notice:
        notice(found.notice)
    files = [data] if data else data_files(workspace.find_file(DATA))
    config = RouteTrainConfig(files, found, catalog.experts)
    result = route_train(config, lambda event: step(event.text))
    if as_json:
        thresholds = {name: value.model_dump() for name, value in result.thresholds.items()}
        emit_json({"base": found.id, "head": str(result.path), "validation": result.figures, "calibration": thresholds})
        return
    for name, figures in result.figures.items():
        shown = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in figures.items())
        err().print(f"{name}: {shown}", markup=False)
    out().print(str(result.path), markup=False)


def evaluate(
    file: Annotated[Path | None, typer.Option("--file", help="Labelled queries instead of the test split.")] = None,
    base: Base = "auto",
    router: Annotated[list[str] | None, typer.Option("--router", help="Only this one; may be repeated.")] = None,
    as_json: AsJson = False,
) -> None:
    """All four routers on the test split, beside each other."""
    from afs_mlx.cli.render.progress import count_progress
    from afs_mlx.cli.render.routing import reports_json, show_reports
    from afs_mlx.core.errors import MissingError, closest
    from afs_mlx.core.paths import Workspace
    from afs_mlx.engine.bases.location import choose_base
    from afs_mlx.experts.catalog import Catalog
    from afs_mlx.experts.routing.choosing import ROUTERS
    from afs_mlx.pipelines.route_eval import TEST, RouteEvalConfig, route_eval
    from afs_mlx.schema.expert import DEFAULT_BASE

    if unknown := [name for name in router or () if name not in ROUTERS]:
        raise UsageError(f"there is no router {unknown[0]!r}", "--router", closest(unknown[0], list(ROUTERS)))
    workspace = Workspace.find()
    catalog = Catalog.load(workspace)
    try:
        found = choose_base(base, DEFAULT_BASE, catalog.bases)
    except MissingError:
        if base != "auto":
            raise
        found = None
    test = file or workspace.find_file(TEST)
    config = RouteEvalConfig(
        test, catalog.experts, workspace.results / "routing" / f"{test.stem}.json", found, router or ROUTERS
    )
    with count_progress("  queries") as progress:
        result = route_eval(config, lambda event: progress(event.done, event.total, event.router))
    if as_json:
        emit_json(reports_json(result))
        return
    show_reports(result)
    err().print(f"result {workspace.shown(result.path)}", markup=False)


app.command(DEFAULT_COMMAND)(handled(route))
app.command("train")(handled(train))
app.command("eval")(handled(evaluate))


def _query(row: dict[str, object]) -> str:
    value = row.get("query")
    if not isinstance(value, str):
        raise ValueError("query: a text is expected")
    return value
