"""`afs-mlx export ollama`: an expert as a model in Ollama, and what was deployed there from here."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from afs_mlx.cli.options import AsJson, BaseName, RunName
from afs_mlx.cli.render.console import emit_json, notice, out, plain, size, step

if TYPE_CHECKING:
    from afs_mlx.core.paths import Workspace


def ollama(
    target: Annotated[
        str,
        typer.Argument(metavar="EXPERT[@VERSION]|MODEL_FOLDER", help="An expert that was fused, or a model folder."),
    ] = "",
    file_type: Annotated[str, typer.Option("--type", help="f16, q8_0, …; empty: q8_0, for a demo f16.")] = "",
    tag: Annotated[str, typer.Option("--name", help="The model's name in Ollama instead of EXPERT-VERSION.")] = "",
    host: Annotated[str, typer.Option("--host", help="The server's address instead of OLLAMA_HOST.")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the calls and the Modelfile; needs no server.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace or remove a model that was not deployed from here.")
    ] = False,
    list_ours: Annotated[bool, typer.Option("--list", help="What was deployed from this workspace.")] = False,
    remove_tag: Annotated[str, typer.Option("--remove", metavar="TAG", help="Remove a model deployed from here.")] = "",
    base: BaseName = "auto",
    run: RunName = "",
    as_json: AsJson = False,
) -> None:
    """Register an expert in Ollama: same weights, prompt template, system text, stop texts and sampling as in chat.

    The GGUF is written where there is none yet. The model is made under a name of its own, read back and asked a
    question; only then does it get its name. What fails leaves the old model in place.
    """
    from afs_mlx.core.errors import UsageError, closest
    from afs_mlx.core.paths import Workspace
    from afs_mlx.schema.gguf import GGUF_TYPES

    workspace = Workspace.find()
    if sum((bool(target), list_ours, bool(remove_tag))) != 1:
        raise UsageError("name one thing to do", "", "afs-mlx export ollama EXPERT, --list, or --remove TAG")
    if dry_run and not target:
        raise UsageError("only a registration has a dry run", "--dry-run", "leave it out, or name an expert")
    if file_type and file_type not in GGUF_TYPES:
        raise UsageError(f"there is no type {file_type!r}", "--type", closest(file_type, list(GGUF_TYPES)))
    if list_ours:
        _list(workspace, as_json)
    elif remove_tag:
        _remove(workspace, remove_tag, host, force, as_json)
    else:
        given = {"target": target, "file_type": file_type or None, "base": base, "run": run, "host": host, "tag": tag}
        _ship(workspace, as_json, {**given, "dry_run": dry_run, "force": force})


def _ship(workspace: "Workspace", as_json: bool, given: dict[str, Any]) -> None:
    from afs_mlx.cli.render.shipping import shipped_json, shipping_progress, show_shipped
    from afs_mlx.experts.catalog import Catalog
    from afs_mlx.flows.shipping import ship
    from afs_mlx.flows.shipping_plan import ShipConfig

    with shipping_progress() as on_event:
        result = ship(ShipConfig(catalog=Catalog.load(workspace), workspace=workspace, **given), on_event)
    for text in result.plan.answerer.notices:
        notice(text)
    if as_json:
        emit_json(shipped_json(result))
    else:
        show_shipped(result, workspace)


def _list(workspace: "Workspace", as_json: bool) -> None:
    from afs_mlx.flows.shipping_plan import RECORD
    from afs_mlx.pipelines.register import deployed, states

    entries = deployed(workspace.fused / RECORD)
    found = states(entries)
    if as_json:
        emit_json({"models": [{**entry.model_dump(), "state": found[entry]} for entry in entries]})
        return
    if not entries:
        notice("nothing was deployed from this workspace yet: afs-mlx export ollama EXPERT")
    for entry in entries:
        made = " ".join(part for part in (entry.expert, entry.run) if part)
        line = f"{entry.tag}  {found[entry]}  {entry.server}  {size(entry.size_bytes)}  {entry.created[:10]}  {made}"
        out().print(plain(line.rstrip()), markup=False)


def _remove(workspace: "Workspace", tag: str, host: str, force: bool, as_json: bool) -> None:
    from afs_mlx.flows.shipping_plan import RECORD
    from afs_mlx.pipelines.register import remove

    address = remove(tag, workspace.fused / RECORD, host=host, force=force)
    if as_json:
        emit_json({"removed": tag, "server": address})
        return
    step(f"removed from {plain(address)}")
    out().print(tag, markup=False)
