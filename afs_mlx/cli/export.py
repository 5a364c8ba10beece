"""`afs-mlx export`: a model for other programs."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from afs_mlx.cli.options import AsJson, BaseName, RunName
from afs_mlx.cli.render.console import emit_json, err, notice, out, size, step
from afs_mlx.schema.gguf import GGUF_TYPES

if TYPE_CHECKING:
    from afs_mlx.core.paths import Workspace
    from afs_mlx.pipelines.export import ExportResult
    from afs_mlx.pipelines.export_adapter import ExportAdapterResult
    from afs_mlx.schema.verification import Verify


def gguf(
    target: Annotated[
        str,
        typer.Argument(metavar="EXPERT[@VERSION]|MODEL_FOLDER", help="An expert that was fused, or a model folder."),
    ],
    file_type: Annotated[
        str, typer.Option("--type", help=f"{', '.join(GGUF_TYPES)}. Without it q8_0; f16 for a demo or an adapter.")
    ] = "",
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Only the adapter, some megabytes, for a base GGUF; f16 or f32.")
    ] = False,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Keep the file without checking it.")] = False,
    thorough: Annotated[
        bool, typer.Option("--thorough", help="Check every number, and 20 prompts of 64 tokens.")
    ] = False,
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="The folder instead of the model's own gguf/.")
    ] = None,
    base: BaseName = "auto",
    run: RunName = "",
    as_json: AsJson = False,
) -> None:
    """Write a GGUF and a Modelfile for llama.cpp, Ollama and LM Studio.

    The file is read again and run by llama.cpp beside mlx before it gets its name; what fails a check is not kept.
    """
    from afs_mlx.core.errors import UsageError, closest
    from afs_mlx.core.paths import Workspace

    if file_type and file_type not in GGUF_TYPES:
        raise UsageError(f"there is no type {file_type!r}", "--type", closest(file_type, list(GGUF_TYPES)))
    if no_verify and thorough:
        raise UsageError("a file is checked thoroughly or not at all", "--no-verify", "leave one of the two out")
    verify: Verify = "none" if no_verify else "thorough" if thorough else "quick"
    asked = _Asked(target, base, run, file_type, verify, out_folder, Workspace.find())
    record, path = _adapter(asked) if adapter else _model(asked)
    if as_json:
        emit_json(record)
        return
    out().print(asked.workspace.shown(path), markup=False)


@dataclass(frozen=True)
class _Asked:
    """The command line."""

    target: str
    base: str
    run: str
    file_type: str
    verify: "Verify"
    out_folder: Path | None
    workspace: "Workspace"


def _model(asked: _Asked) -> tuple[dict[str, Any], Path]:
    from afs_mlx.cli.render.export import ChecksView
    from afs_mlx.cli.render.progress import count_progress
    from afs_mlx.experts.catalog import Catalog
    from afs_mlx.flows.shipping_plan import ShipConfig, plan
    from afs_mlx.pipelines.export import ExportConfig, export
    from afs_mlx.schema.gguf import GgufType
    from afs_mlx.schema.sampling import Sampling

    wanted = cast("GgufType | None", asked.file_type or None)
    planned = plan(
        ShipConfig(asked.target, Catalog.load(asked.workspace), asked.workspace, wanted, base=asked.base, run=asked.run)
    )
    expert = planned.answerer.expert
    for text in planned.answerer.notices:
        notice(text)
    config = ExportConfig(
        model_folder=planned.model_folder,
        name=planned.name,
        file_type=planned.file_type,
        system=planned.answerer.system,
        sampling=expert.sampling if expert else Sampling(),
        shots=expert.version.shots if expert and expert.version else (),
        out_folder=asked.out_folder or planned.gguf.parent,
        modelfile=None if asked.out_folder else planned.modelfile,
        license_text=planned.content.license_text,
        verify=asked.verify,
    )
    step(f"export {planned.name} as {planned.file_type} GGUF")
    view = ChecksView(asked.verify)
    with count_progress("  write") as progress:
        result = export(config, lambda done, total: progress(done, total, ""), view)
    view.end(result.verification)
    err().print(
        f"  {result.tensors} tensors, {size(result.size_bytes)}; {asked.workspace.shown(result.modelfile)}",
        markup=False,
    )
    return _result_record(result), result.gguf


def _adapter(asked: _Asked) -> tuple[dict[str, Any], Path]:
    from afs_mlx.answering import for_target
    from afs_mlx.cli.render.export import ChecksView
    from afs_mlx.cli.render.progress import count_progress
    from afs_mlx.core.errors import UsageError
    from afs_mlx.experts.catalog import Catalog
    from afs_mlx.flows.shipping_plan import name_of
    from afs_mlx.pipelines.export_adapter import (
        AdapterTensorWritten,
        ExportAdapterConfig,
        ExportAdapterEvent,
        export_adapter,
    )

    if asked.file_type not in ("", "f16", "f32"):
        raise UsageError(f"an adapter is not written as {asked.file_type}", "--type", "f16 or f32")
    found = for_target(asked.target, asked.base, asked.run, Catalog.load(asked.workspace), asked.workspace)
    for text in found.notices:
        notice(text)
    chosen, name = found.require_run(), name_of(found)
    file_type: Literal["f32", "f16"] = "f32" if asked.file_type == "f32" else "f16"
    config = ExportAdapterConfig(
        adapter=chosen.path,
        base_folder=found.base.folder,
        base=found.base.identity,
        name=name,
        file_type=file_type,
        out=asked.out_folder / f"{name}-adapter-{file_type}.gguf" if asked.out_folder else None,
        verify=asked.verify,
    )
    step(f"export the adapter of {name} as {file_type} GGUF")
    view = ChecksView(asked.verify)
    with count_progress("  write") as progress:

        def heard(event: ExportAdapterEvent) -> None:
            if isinstance(event, AdapterTensorWritten):
                progress(event.done, event.total, "")

        result = export_adapter(config, heard)
    for check in result.verification.checks if result.verification else ():
        view(check)
    view.end(result.verification)
    err().print(f"  {result.tensors} tensors, {size(result.size_bytes)}, for {found.base.id}", markup=False)
    return _result_record(result), result.gguf


def _result_record(result: "ExportResult | ExportAdapterResult") -> dict[str, Any]:
    record = {key: str(value) if isinstance(value, Path) else value for key, value in vars(result).items()}
    return {**record, "verification": result.verification.model_dump(mode="json") if result.verification else None}


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
