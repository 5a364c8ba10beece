"""`afs-mlx runs`: what was trained, how it went, and what differs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from afs_mlx.cli.errors import handled
from afs_mlx.cli.options import AsJson
from afs_mlx.cli.render.console import emit_json, notice, out, plain

if TYPE_CHECKING:
    from afs_mlx.core.paths import Workspace
    from afs_mlx.runs.overview import Overview

MOST_RUNS = 8

app = typer.Typer(no_args_is_help=True, help="Look at training runs: list, show, compare, plot.", rich_markup_mode=None)

RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's name or an unmistakable part of it, expert/name, or a folder.")
]
RunArguments = Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs, named as for show.")]


@app.command("list")
@handled
def list_runs(
    expert: Annotated[str, typer.Option("--expert", help="Only this expert's runs.")] = "", as_json: AsJson = False
) -> None:
    """List the runs below adapters/, newest first.

    `crashed` is a run that says it is running while its process on this machine is gone.
    """
    from afs_mlx.cli.render.runs import list_json, show_list, strict
    from afs_mlx.core.errors import AfsError
    from afs_mlx.core.paths import Workspace
    from afs_mlx.experts.catalog import Catalog
    from afs_mlx.runs.overview import Overview, all_runs

    workspace = Workspace.find()
    if expert and not (workspace.adapters / expert).is_dir():
        expert = Catalog.load(workspace).choose(expert).name
    runs, failed = all_runs(workspace, expert)
    found: list[Overview] = []
    for run in runs:
        try:
            found.append(Overview.of(run))
        except AfsError as error:
            failed.append(error)
    for problem in failed:
        notice(f"left out: {plain(str(problem).splitlines()[0])}")
    if as_json:
        emit_json({"runs": strict(list_json(found))})
    else:
        show_list(found, workspace)


@app.command("show")
@handled
def show(run: RunArgument, as_json: AsJson = False) -> None:
    """Show one run: how it stands, losses, recipe where it is not the default, data, checkpoints, sample answers."""
    from afs_mlx.cli.render.runs import run_json, show_run, strict
    from afs_mlx.core.paths import Workspace

    workspace = Workspace.find()
    (found,) = _named([run], workspace)
    if as_json:
        emit_json(strict(run_json(found)))
    else:
        show_run(found, workspace)


@app.command("compare")
@handled
def compare(runs: RunArguments, as_json: AsJson = False) -> None:
    """Compare two runs or more: what was set otherwise, what came of it, and what may be said of that.

    Losses are compared only where base and validation rows are the same.
    """
    from afs_mlx.cli.render.runs import strict
    from afs_mlx.cli.render.runs_compared import comparison_json, show_comparison
    from afs_mlx.core.errors import UsageError
    from afs_mlx.core.paths import Workspace
    from afs_mlx.runs.comparison import compare as compared

    if len(runs) < 2:
        raise UsageError("one run is nothing to compare", "RUN", "name two runs or more; afs-mlx runs list shows them")
    found = compared(_named(runs, Workspace.find()))
    if as_json:
        emit_json(strict(comparison_json(found)))
    else:
        show_comparison(found)


@app.command("plot")
@handled
def plot(
    runs: RunArguments,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write one self-contained HTML page to this file instead.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw the training and validation loss of runs over their steps, here or on an HTML page."""
    from afs_mlx.cli.render.runs import strict
    from afs_mlx.cli.render.runs_compared import html_page, plot_json, show_plot
    from afs_mlx.core.errors import MissingError
    from afs_mlx.core.files import write_text
    from afs_mlx.core.paths import Workspace

    workspace = Workspace.find()
    named = _named(runs, workspace)
    found = [overview for overview in named if overview.history.steps or overview.history.validations]
    empty = ", ".join(overview.run.name for overview in named if overview not in found)
    if not found:
        fix = "name a run that trained: an imported adapter has no curves, a run that has just begun none yet"
        raise MissingError(f"nothing to draw: {empty} has no step or validation in metrics.jsonl", "RUN", fix)
    if empty:
        notice(f"not drawn, for want of metrics: {empty}")
    if html is not None:
        write_text(html, html_page(found, workspace))
    if as_json:
        emit_json(strict({**plot_json(found), "html": str(html) if html else None}))
    elif html is not None:
        out().print(str(html), markup=False)
    else:
        show_plot(found)


def _named(names: list[str], workspace: "Workspace") -> "list[Overview]":
    """Each run once. Raises AfsError for a name that means no run, several, or a broken one."""
    from afs_mlx.core.errors import UsageError
    from afs_mlx.runs.overview import Overview, find

    if len(names) > MOST_RUNS:
        raise UsageError(f"{len(names)} runs are too many to tell apart", "RUN", f"name at most {MOST_RUNS}")
    found = [find(workspace, name) for name in names]
    for number, run in enumerate(found):
        if run.path.resolve() in [other.path.resolve() for other in found[:number]]:
            raise UsageError(f"{names[number]!r} is named twice", "RUN", "name each run once")
    return [Overview.of(run) for run in found]
