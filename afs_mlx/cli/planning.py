"""`afs-mlx train --plan`."""

from typing import TYPE_CHECKING

import typer

from afs_mlx.cli.render.console import emit_json, err, notice, step
from afs_mlx.cli.train_requests import Request
from afs_mlx.core.errors import ExitCode

if TYPE_CHECKING:
    from afs_mlx.engine.training.planning.probe import Probing


def show_plan(request: Request, *, as_json: bool, force: bool = False) -> None:
    """Print the forecast; exits with 4 where the training cannot run here, unless `force`."""
    from afs_mlx.cli.recipes import trainable
    from afs_mlx.cli.render import plan as render
    from afs_mlx.pipelines.plan import PlanConfig, plan
    from afs_mlx.pipelines.prepare import PrepareConfig, prepare

    def probing(event: "Probing") -> None:
        err().print(f"  measuring batch {event.number} of {event.total}: {event.tokens} tokens", markup=False)

    if request.base.notice:
        notice(request.base.notice)
    step(f"plan {request.title}")
    # Not request.rows: that writes the split.
    rows = prepare(PrepareConfig(request.data, request.workspace, request.suite, request.recipe.seed, write=False))
    result = plan(
        PlanConfig(
            system=request.expert.system,
            recipe=request.recipe,
            base=request.base_name,
            own_base=trainable(request.expert).base,
            bases=request.catalog.bases,
            train=rows.train,
            valid=rows.valid,
            force=force,
        ),
        probing,
    )
    if as_json:
        emit_json(render.as_json(result))
    else:
        render.show(result)
    if result.forecast.verdict == "impossible" and not force:
        raise typer.Exit(ExitCode.REFUSED)
