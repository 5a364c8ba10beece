"""`afs-mlx fuse`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from afs_mlx.cli.options import AsJson, BaseName, RunName
from afs_mlx.cli.render.console import emit_json, err, notice, out, size, step

if TYPE_CHECKING:
    from afs_mlx.pipelines.fuse import FuseResult

Target = Annotated[
    str, typer.Argument(metavar="EXPERT[@VERSION]|RUN_FOLDER", help="An expert, or a run folder below adapters/.")
]


def fuse(
    target: Target,
    quantize: Annotated[
        str, typer.Option("--quantize", help="none, 8, 4, mixed_2_6, mixed_3_4, mixed_3_6 or mixed_4_6.")
    ] = "none",
    changed: Annotated[
        str,
        typer.Option("--changed", help="Where only a quantised base is here, the changed layers' bits: 8, 16 or same."),
    ] = "8",
    base: BaseName = "auto",
    run: RunName = "",
    force: Annotated[bool, typer.Option("--force", help="Keep a model that agrees too little all the same.")] = False,
    as_json: AsJson = False,
) -> None:
    """Add an adapter to its base, as one model folder.

    Added in float32 and rounded once. The result is held against base and adapter; mlx-lm loads the folder as it is.
    """
    from afs_mlx.answering import for_target
    from afs_mlx.cli.recipes import suite_path
    from afs_mlx.core.config import validate
    from afs_mlx.core.errors import UsageError, closest
    from afs_mlx.core.paths import Workspace
    from afs_mlx.engine.fusing.options import CHANGED, QUANTIZE, StorageOptions
    from afs_mlx.experts.catalog import Catalog
    from afs_mlx.pipelines.fuse import FuseConfig
    from afs_mlx.pipelines.fuse import fuse as fuse_run

    for option, value, known in (("--quantize", quantize, QUANTIZE), ("--changed", changed, CHANGED)):
        if value not in known:
            raise UsageError(f"there is no {option.lstrip('-')} {value!r}", option, closest(value, list(known)))
    storage = validate(StorageOptions, {"quantize": quantize, "changed": changed}, "fuse")
    workspace = Workspace.find()
    catalog = Catalog.load(workspace)
    found = for_target(target, base, run, catalog, workspace)
    chosen = found.require_run()
    for text in found.notices:
        notice(text)
    version = found.expert.version if found.expert else None
    suite = suite_path(version, workspace) if version else None
    step(f"fuse {chosen.name} into {chosen.base}")
    result = fuse_run(FuseConfig(chosen, catalog.bases, workspace, storage, suite=suite, force=force))
    if result.notice:
        notice(result.notice)
    if result.report.reason:
        notice(f"kept by --force: {result.report.reason}")
    if as_json:
        emit_json(_record(result))
        return
    _show(result)
    out().print(workspace.shown(result.path), markup=False)


def _show(result: "FuseResult") -> None:
    report = result.report
    err().print(f"  {result.layers} layers changed, {size(result.size_bytes)}, {result.dtype}", markup=False)
    err().print(
        f"  against base + adapter: {report.top1:.1%} of {report.positions} tokens agree, KL {report.kl:.4f}, "
        f"{report.median_survival:.1%} of the update survive (least {report.min_survival:.1%}); {report.prompts}",
        markup=False,
    )


def _record(result: "FuseResult") -> dict[str, Any]:
    report = result.report
    return {
        "folder": str(result.path),
        "layers": result.layers,
        "size_bytes": result.size_bytes,
        "dtype": result.dtype,
        "kl": report.kl,
        "top1": report.top1,
        "positions": report.positions,
        "prompts": report.prompts,
        "survival": {"min": report.min_survival, "median": report.median_survival},
        "held_back": report.reason,
    }
