"""`afs-mlx adapters`: what an adapter is, and how two differ."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from afs_mlx.cli.errors import handled
from afs_mlx.cli.options import AsJson, RunName
from afs_mlx.cli.render.console import emit_json, out

if TYPE_CHECKING:
    from afs_mlx.core.paths import Workspace
    from afs_mlx.experts.catalog import Catalog

app = typer.Typer(no_args_is_help=True, help="Look into adapters: list, inspect, diff.", rich_markup_mode=None)

Target = Annotated[
    str,
    typer.Argument(
        metavar="EXPERT[@VERSION]|FOLDER", help="An expert, a run folder, or any MLX or PEFT adapter folder."
    ),
]
AllLayers = Annotated[bool, typer.Option("--layers", help="Every layer instead of one line for each target.")]


@app.command("inspect")
@handled
def inspect(target: Target, run: RunName = "", all_layers: AllLayers = False, as_json: AsJson = False) -> None:
    """Show an adapter's settings, base, provenance and what each layer adds.

    The norm is ‖ΔW‖, Frobenius, of ΔW = scale · B·A. The effective rank is exp of the entropy of its singular values:
    1 where one direction does all, the rank where all do the same. Reads MLX and PEFT folders; needs no base.
    """
    from afs_mlx.cli.render.adapters import inspection_json, show_inspection
    from afs_mlx.core.paths import Workspace
    from afs_mlx.experts.catalog import Catalog
    from afs_mlx.pipelines.inspect_adapters import inspect_adapter

    workspace = Workspace.find()
    catalog = Catalog.load(workspace)
    found = inspect_adapter(adapter_folder(target, run, catalog, workspace), catalog.bases)
    if as_json:
        emit_json(inspection_json(found))
    else:
        show_inspection(found, all_layers, workspace)


@app.command("diff")
@handled
def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="As for inspect.")],
    second: Annotated[str, typer.Argument(metavar="B", help="As for inspect; the other layout is fine.")],
    all_layers: AllLayers = False,
    as_json: AsJson = False,
) -> None:
    """Compare two adapters: settings, layers that only one has, and each layer's update.

    The difference of a layer is ‖ΔW_A - ΔW_B‖ / ‖ΔW_A‖; the cosine is that of the two updates, 1 for one direction.
    """
    from afs_mlx.cli.render.adapters import comparison_json, show_comparison
    from afs_mlx.core.paths import Workspace
    from afs_mlx.experts.catalog import Catalog
    from afs_mlx.pipelines.inspect_adapters import compare_adapters

    workspace = Workspace.find()
    catalog = Catalog.load(workspace)
    found = compare_adapters(*(adapter_folder(name, "", catalog, workspace) for name in (first, second)))
    if as_json:
        emit_json(comparison_json(found))
    else:
        show_comparison(found, all_layers)


@app.command("list")
@handled
def list_adapters(as_json: AsJson = False) -> None:
    """List the runs below adapters/, by expert."""
    from afs_mlx.core.paths import Workspace
    from afs_mlx.runs.folder import runs_of

    workspace = Workspace.find()
    homes = sorted(path.name for path in workspace.adapters.glob("*") if path.is_dir())
    rows = [
        {
            "expert": home,
            "version": str(run.record.get("version") or ""),
            "run": run.name,
            "base": run.base,
            "status": run.status,
            "made_at": str(run.record.get("finished_at") or run.record.get("made_at") or ""),
        }
        for home in homes
        for run in runs_of(workspace, home)
    ]
    if as_json:
        emit_json({"adapters": rows})
        return
    from afs_mlx.cli.render.adapters import show_rows

    if not rows:
        out().print(f"no adapters in {workspace.shown(workspace.adapters)}", markup=False)
    else:
        show_rows(list(rows[0]), [list(row.values()) for row in rows])


def adapter_folder(target: str, run: str, catalog: "Catalog", workspace: "Workspace") -> Path:
    """The folder a person means: a folder as it is, or an expert's run; its base need not be on this machine.

    Of an expert's runs the named or pinned one, else the best on the version's own base, else on any other.
    """
    from afs_mlx.core.errors import MissingError, UsageError
    from afs_mlx.runs.folder import runs_of
    from afs_mlx.runs.selection import select, usable_run

    folder = Path(target).expanduser()
    if target.partition("@")[0] not in catalog.experts:
        if folder.is_dir():
            if run:
                raise UsageError("a folder is named already", "--run", "leave --run out, or name an expert")
            return folder
        if len(folder.parts) > 1 or target.startswith((".", "~")):
            raise MissingError("there is no such adapter folder", target, "check the path")
    chosen = catalog.choose(target)
    if named := run or chosen.expert.pinned:
        return usable_run(workspace, chosen.name, named).path
    own = chosen.version.base if chosen.version else ""
    others = sorted(
        (found for found in runs_of(workspace, chosen.name) if found.base != own),
        key=lambda found: (found.record.get("demo") is True, found.base),
    )
    for base in dict.fromkeys([own, *(found.base for found in others)]):
        if selection := select(workspace, chosen.name, chosen.version_name, base):
            return selection.run.path
    fix = f"afs-mlx train {chosen.label}, or afs-mlx convert PEFT_FOLDER --expert {chosen.label}"
    raise MissingError(f"{chosen.label} has no adapter", str(workspace.adapters / chosen.name), fix)
