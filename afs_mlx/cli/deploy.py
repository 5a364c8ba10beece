"""`afs-mlx deploy`: the verdict of the newest evaluation, then an expert as a model in Ollama."""

from typing import Annotated

import typer

from afs_mlx.cli.options import AsJson, BaseName, ExpertName, RunName
from afs_mlx.cli.render.console import emit_json, notice
from afs_mlx.core.errors import ExitCode


def deploy(
    expert: ExpertName,
    file_type: Annotated[str, typer.Option("--type", help="f16, q8_0, …; empty: q8_0, for a demo f16.")] = "",
    host: Annotated[str, typer.Option("--host", help="The server's address instead of OLLAMA_HOST.")] = "",
    force: Annotated[
        bool, typer.Option("--force", help="Deploy what the verdict holds back, and a name that is not ours; recorded.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the verdict and what would be done; needs no server.")
    ] = False,
    base: BaseName = "auto",
    run: RunName = "",
    as_json: AsJson = False,
) -> None:
    """Put an expert into Ollama if its newest evaluation allows it: fuse, export, register.

    Refused (exit 4) without a result of these weights, this base and this suite, below the one before it or below what
    is deployed, and where the gate was not passed. A dry run that would be refused exits 4 too.
    """
    from afs_mlx.cli.render.deploy import deploy_progress, deployed_json, show_deployed, show_planned
    from afs_mlx.core.errors import UsageError, closest
    from afs_mlx.core.paths import Workspace
    from afs_mlx.experts.catalog import Catalog
    from afs_mlx.flows.deploy import deploy as run_chain
    from afs_mlx.flows.shipping_plan import ShipConfig
    from afs_mlx.schema.gguf import GGUF_TYPES

    if file_type and file_type not in GGUF_TYPES:
        raise UsageError(f"there is no type {file_type!r}", "--type", closest(file_type, list(GGUF_TYPES)))
    workspace = Workspace.find()
    config = ShipConfig(
        target=expert,
        catalog=Catalog.load(workspace),
        workspace=workspace,
        file_type=file_type or None,  # type: ignore[arg-type]
        base=base,
        run=run,
        host=host,
        force=force,
        dry_run=dry_run,
    )
    with deploy_progress(workspace) as on_event:
        result = run_chain(config, on_event)
    for text in result.shipped.plan.answerer.notices:
        notice(text)
    if as_json:
        emit_json(deployed_json(result))
    elif dry_run:
        show_planned(result, workspace)
    else:
        show_deployed(result, workspace)
    if dry_run and not result.judgement.passed and not force:
        raise typer.Exit(ExitCode.REFUSED)
