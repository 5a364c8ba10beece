"""`afs-mlx build`: the main job, one stage after the other, and a short report."""

import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from afs_mlx.cli.options import AsJson, BaseName, ConfigFile, DataPath, ExpertName, Overrides
from afs_mlx.cli.render.console import emit_json, err, notice, step
from afs_mlx.core.errors import ExitCode

if TYPE_CHECKING:
    from afs_mlx.schema.base import Base


def build(
    expert: ExpertName,
    base: BaseName = "auto",
    data: DataPath = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    pull: Annotated[
        bool, typer.Option("--pull", help="Fetch the embedded base first when no usable base is here.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the newest unfinished training of this version.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Fuse and export also when the gate says no.")] = False,
    as_json: AsJson = False,
) -> None:
    """Do everything for one expert, data to GGUF.

    Prepares the data, scores the base, trains, scores again, holds the result against the gate, fuses and exports.
    """
    from afs_mlx.cli.bases import fetch
    from afs_mlx.cli.recipes import trainable
    from afs_mlx.cli.render.build import BuildView, report
    from afs_mlx.cli.train_requests import Request
    from afs_mlx.core.errors import MissingError
    from afs_mlx.core.paths import Workspace
    from afs_mlx.engine.bases.location import EMBEDDED, BaseFolder, choose_base
    from afs_mlx.flows.build import STAGES, BuildConfig
    from afs_mlx.flows.build import build as run_chain

    began = time.monotonic()
    workspace = Workspace.find()

    def find_base(wanted: str, own: str, bases: Mapping[str, "Base"]) -> BaseFolder:
        try:
            return choose_base(wanted, own, bases)
        except MissingError:
            if not pull or wanted not in ("auto", EMBEDDED):
                raise
            fetch(bases[EMBEDDED])
            return choose_base(wanted, own, bases)

    request = Request.of(workspace, expert, base, data, None, config, overrides, resume=resume, find_base=find_base)
    found, chosen = request.base, request.expert
    if found.notice:
        notice(found.notice)
    step(f"build {request.title}")
    stop = threading.Event()
    with BuildView(workspace, len(STAGES), stop, request.title) as view:
        result = run_chain(
            BuildConfig(
                expert=chosen,
                recipe=request.recipe,
                data=request.data,
                suite=request.suite,
                base=found.id,
                threshold=trainable(chosen).threshold,
                # Eight bits cost a small model visibly; a large one is too large in sixteen.
                file_type="f16" if found.demo else "q8_0",
                catalog=request.catalog,
                workspace=workspace,
                force=force,
                resume=request.resume,
                stop=stop,
            ),
            view,
        )
    summary = report(result, chosen, found, workspace, time.monotonic() - began)
    if as_json:
        emit_json(summary.record)
    else:
        summary.show()
    if result.trained.interrupted:
        kept = "the adapter so far is saved" if result.trained.improved else "nothing was learnt yet"
        err().print(f"interrupted: {kept}, nothing was fused or exported", style="yellow")
        notice(f"go on with: afs-mlx build {chosen.label} --resume")
        raise typer.Exit(ExitCode.INTERRUPTED)
