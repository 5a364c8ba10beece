"""`afs-mlx fuse`."""

from typing import Annotated

import typer

from afs_mlx.cli.options import AsJson, BaseName, RunName
from afs_mlx.cli.render.console import emit_json, err, notice, out, size, step

Target = Annotated[
    str, typer.Argument(metavar="EXPERT[@VERSION]|RUN_FOLDER", help="An expert, or a run folder below adapters/.")
]


def fuse(target: Target, base: BaseName = "auto", run: RunName = "", as_json: AsJson = False) -> None:
    """Add an adapter to its base, as one model folder.

    Added in float32 and stored in the base's own precision; mlx-lm and transformers load the folder as it is.
    """
    from afs_mlx.answering import for_target
    from afs_mlx.core.paths import Workspace
    from afs_mlx.experts.catalog import Catalog
    from afs_mlx.pipelines.fuse import FuseConfig
    from afs_mlx.pipelines.fuse import fuse as fuse_run

    workspace = Workspace.find()
    catalog = Catalog.load(workspace)
    found = for_target(target, base, run, catalog, workspace)
    chosen = found.require_run()
    for text in found.notices:
        notice(text)
    step(f"fuse {chosen.name} into {chosen.base}")
    result = fuse_run(FuseConfig(chosen, catalog.bases, workspace))
    if result.notice:
        notice(result.notice)
    if as_json:
        emit_json(
            {
                "folder": str(result.path),
                "layers": result.layers,
                "size_bytes": result.size_bytes,
                "dtype": result.dtype,
            }
        )
        return
    err().print(f"  {result.layers} layers changed, {size(result.size_bytes)}, {result.dtype}", markup=False)
    out().print(workspace.shown(result.path), markup=False)
