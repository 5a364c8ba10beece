"""`afs-mlx export lmstudio`: a model where LM Studio looks for models."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from afs_mlx.cli.options import AsJson, BaseName, RunName
from afs_mlx.cli.render.console import emit_json, err, notice, out, size, step

if TYPE_CHECKING:
    from afs_mlx.core.paths import Workspace
    from afs_mlx.pipelines.place import PlaceResult


def lmstudio(
    target: Annotated[
        str,
        typer.Argument(metavar="EXPERT[@VERSION]|MODEL_FOLDER", help="An expert that was fused, or a model folder."),
    ],
    gguf: Annotated[bool, typer.Option("--gguf", help="Place the GGUFs made of it instead of the MLX folder.")] = False,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy the weights; without it they are hard links and take no room.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a model of that name that was not placed from here.")
    ] = False,
    base: BaseName = "auto",
    run: RunName = "",
    as_json: AsJson = False,
) -> None:
    """Place a fused model where LM Studio finds it, as afs-mlx/NAME.

    LM Studio runs MLX folders on Apple Silicon as they are. It reads no system prompt from a model: the command prints
    where the expert's own lies, to be pasted once.
    """
    from afs_mlx.answering import for_target
    from afs_mlx.core.paths import Workspace
    from afs_mlx.experts.catalog import Catalog
    from afs_mlx.flows.shipping_plan import fused_folder_of, gguf_folder_of, is_demo, tag_of
    from afs_mlx.pipelines.place import PlaceConfig, place

    workspace = Workspace.find()
    found = for_target(target, base, run, Catalog.load(workspace), workspace)
    for text in found.notices:
        notice(text)
    folder = fused_folder_of(found, workspace, target)
    expert = found.expert
    facts: dict[str, Any] = {
        "expert": expert.name if expert else "",
        "version": expert.version_name if expert else "",
        "run": found.run.name if found.run else "",
        "demo": is_demo(found),
    }
    name = tag_of(found)
    step(f"place {name} for LM Studio")
    result = place(
        PlaceConfig(
            model_folder=folder,
            name=name,
            system=found.system,
            facts=facts,
            gguf_folder=gguf_folder_of(found, workspace) if gguf else None,
            shots=len(expert.version.shots) if expert and expert.version else 0,
            copy=copy,
            force=force,
        )
    )
    for text in result.notices:
        notice(text)
    if as_json:
        emit_json(_record(result))
        return
    _show(result, workspace)


def _record(result: "PlaceResult") -> dict[str, Any]:
    placed = result.placed
    return {
        "kind": result.kind,
        "key": placed.key,
        "folder": str(placed.path),
        "files": list(placed.files),
        "linked_bytes": placed.linked_bytes,
        "copied_bytes": placed.copied_bytes,
        "system_prompt": str(placed.prompt) if placed.prompt else "",
        "replaced": placed.replaced,
        "notices": list(result.notices),
    }


def _show(result: "PlaceResult", workspace: "Workspace") -> None:
    placed = result.placed
    err().print(
        f"  {result.kind}, {len(placed.files)} files: {size(placed.linked_bytes)} linked, "
        f"{size(placed.copied_bytes)} copied; LM Studio lists it as {placed.key}",
        markup=False,
    )
    if placed.prompt:
        err().print(
            "  LM Studio takes no system prompt from a model: in this model's settings under My Models, paste\n"
            f"  {workspace.shown(placed.prompt)}",
            markup=False,
        )
    out().print(workspace.shown(placed.path), markup=False)
