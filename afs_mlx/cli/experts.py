"""`afs-mlx experts`: the catalog, read with the user's overlay."""

from typing import Annotated, Any

import typer

from afs_mlx.cli.errors import handled
from afs_mlx.cli.options import AsJson
from afs_mlx.cli.render.console import emit_json, out

app = typer.Typer(no_args_is_help=False, help="The experts: list, show, check.", rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def default(context: typer.Context) -> None:
    """List the experts when no command is named."""
    if context.invoked_subcommand is None:
        list_experts(as_json=False)


@app.command("list")
@handled
def list_experts(as_json: AsJson = False) -> None:
    """Every expert, its versions and what it does."""
    from afs_mlx.core.paths import Workspace
    from afs_mlx.experts.catalog import Catalog
    from afs_mlx.runs.folder import runs_of

    workspace = Workspace.find()
    catalog = Catalog.load(workspace)
    rows: list[dict[str, Any]] = [
        {
            "expert": name,
            "versions": list(expert.versions),
            "default": expert.default_version,
            "runs": len([run for run in runs_of(workspace, name) if run.usable]),
            "title": expert.title,
        }
        for name, expert in catalog.experts.items()
    ]
    if as_json:
        emit_json({"experts": rows})
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("expert", "versions", "runs", "does"):
        table.add_column(heading)
    for row in rows:
        cells = (row["expert"], " ".join(row["versions"]), row["runs"], row["title"])
        table.add_row(*(Text(str(cell)) for cell in cells))
    out().print(table)


@app.command("show")
@handled
def show(
    name: Annotated[str, typer.Argument(metavar="EXPERT[@VERSION]", help="Which expert.")],
    as_json: AsJson = False,
) -> None:
    """One expert: prompt, sampling, versions, recipe, runs."""
    from afs_mlx.core.paths import Workspace
    from afs_mlx.experts.catalog import Catalog
    from afs_mlx.runs.folder import runs_of

    workspace = Workspace.find()
    chosen = Catalog.load(workspace).choose(name)
    runs = [{"run": run.name, "status": run.status, "base": run.base} for run in runs_of(workspace, chosen.name)]
    version = chosen.version.model_dump(mode="json", exclude_none=True) if chosen.version else {}
    record = {
        "expert": chosen.label,
        "title": chosen.expert.title,
        "system": chosen.system,
        "sampling": chosen.sampling.model_dump(mode="json"),
        "keywords": list(chosen.expert.keywords),
        "versions": list(chosen.expert.versions),
        "version": version,
        "runs": runs,
    }
    if as_json:
        emit_json(record)
        return
    console = out()
    console.print(f"{chosen.label}: {chosen.expert.title}", style="bold", markup=False)
    console.print(f"\nsystem text:\n{chosen.system or '(none)'}\n", markup=False)
    for title, table in (("sampling", record["sampling"]), ("recipe", version.get("recipe", {}))):
        if isinstance(table, dict) and table:
            console.print(f"{title}: " + ", ".join(f"{key} {value}" for key, value in table.items()), markup=False)
    for key in ("kind", "base", "data", "suite", "threshold", "note"):
        if version.get(key):
            console.print(f"{key}: {version[key]}", markup=False)
    console.print(f"versions: {', '.join(chosen.expert.versions) or '(none)'}", markup=False)
    for run in runs:
        console.print(f"run: {run['run']} ({run['status']}, {run['base']})", markup=False)


@app.command("check")
@handled
def check(as_json: AsJson = False) -> None:
    """Read the catalog and experts.toml, every prompt and every suite named; list all problems."""
    from afs_mlx.core.errors import AfsError, problems
    from afs_mlx.core.paths import Workspace
    from afs_mlx.experts.catalog import Catalog

    workspace = Workspace.find()
    catalog = Catalog.load(workspace)
    found: list[str] = []
    absent: list[str] = []
    for name, expert in catalog.experts.items():
        for version in expert.versions or [""]:
            label = f"{name}@{version}" if version else name
            try:
                chosen = catalog.choose(label)
            except AfsError as error:
                found.append(f"{label}: {error.what}")
                continue
            if chosen.version is None:
                continue
            if chosen.version.base not in catalog.bases:
                found.append(f"{label}: base {chosen.version.base!r} is not in the catalog of bases")
            for path in (f"data/curated/{chosen.version.data}.jsonl", f"evals/suites/{chosen.version.suite}.toml"):
                if not path.endswith(("/.jsonl", "/.toml")) and not workspace.has_file(path):
                    absent.append(f"{label}: {path} is not here yet")
    if found:
        raise problems(found, "bad experts", str(workspace.experts_file), "mend these keys")
    if as_json:
        emit_json({"experts": list(catalog.experts), "absent": absent})
        return
    out().print(f"{len(catalog.experts)} experts are well formed", markup=False)
    for line in absent:
        out().print(f"  {line}", markup=False)
