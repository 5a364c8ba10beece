"""`afs-mlx train`."""

import threading
from pathlib import Path
from typing import Annotated

import typer

from afs_mlx.cli.errors import stoppable
from afs_mlx.cli.options import AsJson, BaseName, ConfigFile, DataPath, ExpertName, Overrides
from afs_mlx.cli.render.console import duration, emit_json, err, notice, out, step
from afs_mlx.core.errors import ExitCode


def train(
    expert: ExpertName,
    base: BaseName = "auto",
    data: DataPath = None,
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="The run folder instead of adapters/<expert>/<run>.")
    ] = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Train an expert's adapter.

    Ctrl-C finishes the step and saves what has been learnt; a second one stops at once.
    """
    from afs_mlx.cli.recipes import data_path, recipe_for, suite_path, trainable
    from afs_mlx.cli.render.progress import TrainingView
    from afs_mlx.core.paths import Workspace
    from afs_mlx.engine.bases.location import choose_base
    from afs_mlx.experts.catalog import Catalog
    from afs_mlx.pipelines.prepare import PrepareConfig, prepare
    from afs_mlx.pipelines.train import BaseChosen, RunCreated, TrainConfig, TrainEvent
    from afs_mlx.pipelines.train import train as train_adapter

    workspace = Workspace.find()
    catalog = Catalog.load(workspace)
    chosen = catalog.choose(expert)
    version = trainable(chosen)
    demo = choose_base(base, version.base, catalog.bases).demo
    recipe = recipe_for(version, demo, config, overrides)
    rows = prepare(
        PrepareConfig(data_path(version, data, workspace), workspace, suite_path(version, workspace), recipe.seed)
    )
    step(f"train {chosen.label}")
    stop = threading.Event()
    with stoppable("the adapter", stop), TrainingView() as view:

        def on_event(event: TrainEvent) -> None:
            if isinstance(event, BaseChosen):
                if event.notice:
                    notice(event.notice)
                err().print(f"  base {event.id}" + (" (demo)" if event.demo else ""), markup=False)
            elif isinstance(event, RunCreated):
                err().print(f"  run {workspace.shown(event.path)}", markup=False)
            else:
                view(event)

        result = train_adapter(
            TrainConfig(
                expert=chosen.name,
                version=chosen.version_name,
                system=chosen.system,
                recipe=recipe,
                base=base,
                own_base=version.base,
                bases=catalog.bases,
                train=rows.train,
                valid=rows.valid,
                data_record=rows.record,
                workspace=workspace,
                out=out_folder,
                stop=stop,
            ),
            on_event,
        )
    if as_json:
        emit_json({"run": str(result.path), **{key: value for key, value in vars(result).items() if key != "path"}})
    else:
        state = "stopped early at" if result.interrupted else "finished"
        err().print(
            f"  {state} {result.steps} of {result.total_steps} steps in {duration(result.elapsed_s)}, "
            f"peak {result.peak_memory_gb:.1f} GB; valid loss {result.base_valid_loss:.3f} (base) → "
            f"{result.best_valid_loss:.3f} (best, step {result.best_step})",
            markup=False,
        )
        out().print(workspace.shown(result.path), markup=False)
    if not result.improved:
        notice(
            "no step was better than the base on the validation rows, so this run will not answer: "
            "lower learning_rate, bring more rows, or let it run longer"
        )
    if result.interrupted:
        raise typer.Exit(ExitCode.INTERRUPTED)
