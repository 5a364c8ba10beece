"""`afs-mlx export`: a model for other programs."""

from pathlib import Path
from typing import Annotated

import typer

from afs_mlx.cli.options import AsJson, BaseName, RunName
from afs_mlx.cli.render.console import emit_json, err, notice, out, size, step


def gguf(
    target: Annotated[
        str,
        typer.Argument(metavar="EXPERT[@VERSION]|MODEL_FOLDER", help="An expert that was fused, or a model folder."),
    ],
    file_type: Annotated[str, typer.Option("--type", help="f32, f16 or q8_0.")] = "q8_0",
    base: BaseName = "auto",
    run: RunName = "",
    as_json: AsJson = False,
) -> None:
    """Write a GGUF and a Modelfile for llama.cpp, Ollama and LM Studio."""
    from afs_mlx.answering import for_target
    from afs_mlx.cli.render.progress import count_progress
    from afs_mlx.core.errors import MissingError, UsageError
    from afs_mlx.core.paths import Workspace
    from afs_mlx.experts.catalog import Catalog
    from afs_mlx.pipelines.export import ExportConfig
    from afs_mlx.pipelines.export import export as export_model
    from afs_mlx.schema.sampling import Sampling

    if file_type not in ("f32", "f16", "q8_0"):
        raise UsageError(f"there is no type {file_type!r}", "--type", "f32, f16 or q8_0")
    workspace = Workspace.find()
    catalog = Catalog.load(workspace)
    found = for_target(target, base, run, catalog, workspace)
    folder, expert = found.base.folder, found.expert
    if not found.fused:
        chosen = found.require_run()
        folder = workspace.fused / (chosen.expert or "adapter") / chosen.name
        if not folder.is_dir():
            raise MissingError("this run is not fused yet", chosen.name, f"afs-mlx fuse {target}")
    name = "-".join(part for part in (expert.name, expert.version_name) if part) if expert else folder.name.lower()
    step(f"export {name} as {file_type} GGUF")
    config = ExportConfig(
        model_folder=folder,
        name=name,
        file_type=file_type,  # type: ignore[arg-type]
        system=found.system,
        sampling=expert.sampling if expert else Sampling(),
    )
    with count_progress("  write") as progress:
        result = export_model(config, lambda done, total: progress(done, total, ""))
    if as_json:
        emit_json({key: str(value) if isinstance(value, Path) else value for key, value in vars(result).items()})
        return
    err().print(f"  {result.tensors} tensors, {size(result.size_bytes)}; Modelfile beside it", markup=False)
    out().print(workspace.shown(result.gguf), markup=False)


def peft(
    target: Annotated[
        str,
        typer.Argument(metavar="EXPERT[@VERSION]|RUN_FOLDER", help="An expert, a run, or any MLX adapter folder."),
    ],
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="The folder instead of peft/ in the adapter's own.")
    ] = None,
    base_name: Annotated[
        str, typer.Option("--base-name", help="The base named in the config, instead of the catalog's original.")
    ] = "",
    run: RunName = "",
    as_json: AsJson = False,
) -> None:
    """Write an adapter as a PEFT folder, for PyTorch on CUDA and Windows.

    peft.PeftModel.from_pretrained(model, FOLDER) loads it as it is. No number is rounded; the base is not needed here.
    """
    from afs_mlx.cli.adapters import adapter_folder
    from afs_mlx.cli.render.adapters import ranges
    from afs_mlx.core.paths import Workspace
    from afs_mlx.experts.catalog import Catalog
    from afs_mlx.pipelines.export_peft import ExportPeftConfig, export_peft

    workspace = Workspace.find()
    catalog = Catalog.load(workspace)
    folder = adapter_folder(target, run, catalog, workspace)
    result = export_peft(ExportPeftConfig(folder, catalog.bases, out_folder, base_name))
    if result.notice:
        notice(result.notice)
    if as_json:
        emit_json({key: str(value) if isinstance(value, Path) else value for key, value in vars(result).items()})
        return
    where = "" if result.blocks is None else f" in blocks {ranges(result.blocks)}"
    err().print(
        f"  {'DoRA' if result.dora else 'LoRA'} of rank {result.rank}, alpha {result.alpha:g} on {result.layers} layers"
        f"{where}{f', {result.left_out} zero ones left out' if result.left_out else ''}; {', '.join(result.dtypes)}, "
        f"{size(result.size_bytes)}; base {result.base_name or 'not named'}",
        markup=False,
    )
    out().print(workspace.shown(result.path), markup=False)
