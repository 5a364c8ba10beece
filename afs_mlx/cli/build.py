"""`afs-mlx build`: the main job, one stage after the other, and a short report."""

import threading
import time
from typing import Annotated

import typer

from afs_mlx.cli.options import AsJson, BaseName, ConfigFile, DataPath, ExpertName, Overrides
from afs_mlx.cli.render.console import emit_json, err, notice, step
from afs_mlx.core.errors import ExitCode


def build(
    expert: ExpertName,
    base: BaseName = "auto",
    data: DataPath = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    pull: Annotated[
        bool, typer.Option("--pull", help="Fetch the embedded base first when no usable base is here.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Fuse and export also when the gate says no.")] = False,
    as_json: AsJson = False,
) -> None:
    """Do everything for one expert, data to GGUF.

    Prepares the data, scores the base, trains, scores again, holds the result against the gate, fuses and exports.
    """
    from afs_mlx.cli.bases import fetch
    from afs_mlx.cli.recipes import data_path, recipe_for, suite_path, trainable
    from afs_mlx.cli.render.build import BuildView, report
    from afs_mlx.core.errors import MissingError
    from afs_mlx.core.paths import Workspace
    from afs_mlx.engine.bases.location import EMBEDDED, choose_base
    from afs_mlx.experts.catalog import Catalog
    from afs_mlx.flows.build import STAGES, BuildConfig
    from afs_mlx.flows.build import build as run_chain

    began = time.monotonic()
    workspace = Workspace.find()
    catalog = Catalog.load(workspace)
    chosen = catalog.choose(expert)
    version = trainable(chosen)
    rows = data_path(version, data, workspace)
    try:
        found = choose_base(base, version.base, catalog.bases)
    except MissingError:
        if not pull or base not in ("auto", EMBEDDED):
            raise
        fetch(catalog.bases[EMBEDDED])
        found = choose_base(base, version.base, catalog.bases)
    if found.notice:
        notice(found.notice)
    step(f"build {chosen.label} on {found.id}" + (" (demo)" if found.demo else ""))
    stop = threading.Event()
    with BuildView(workspace, len(STAGES), stop) as view:
        result = run_chain(
            BuildConfig(
                expert=chosen,
                recipe=recipe_for(version, found.demo, config, overrides),
                data=rows,
                suite=suite_path(version, workspace),
                base=found.id,
                threshold=version.threshold,
                # Eight bits cost a small model visibly; a large one is too large in sixteen.
                file_type="f16" if found.demo else "q8_0",
                catalog=catalog,
                workspace=workspace,
                force=force,
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
        raise typer.Exit(ExitCode.INTERRUPTED)
