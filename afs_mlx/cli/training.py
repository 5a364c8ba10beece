"""`afs-mlx train`."""

import shlex
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from afs_mlx.cli.errors import stoppable
from afs_mlx.cli.options import AsJson, BaseName, ConfigFile, DataPath, ExpertName, Overrides
from afs_mlx.cli.render.console import duration, emit_json, err, notice, out, size, step
from afs_mlx.core.errors import ExitCode

if TYPE_CHECKING:
    from afs_mlx.core.paths import Workspace
    from afs_mlx.pipelines.train import TrainResult


def train(
    expert: ExpertName,
    base: BaseName = "auto",
    data: DataPath = None,
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="The run folder instead of adapters/<expert>/<run>.")
    ] = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the newest unfinished run, or with the one in --out.")
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Predict memory and time from a few steps, propose settings, do not train.")
    ] = False,
    hosts: Annotated[
        str, typer.Option("--hosts", metavar="FILE|N", help="Train on several machines (MLX's hosts file), or N ranks.")
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Train also what does not fit this machine's memory.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train an expert's adapter.

    Ctrl-C finishes the step and saves what has been learnt; a second one stops at once. Either way, and after a crash,
    --resume goes on bit for bit from the last checkpoint.
    """
    from afs_mlx.cli.render.training import TrainingView
    from afs_mlx.cli.train_requests import Request
    from afs_mlx.core.paths import Workspace
    from afs_mlx.pipelines.train import BaseChosen, RunCreated, TrainEvent
    from afs_mlx.pipelines.train import train as train_adapter

    workspace = Workspace.find()
    request = Request.of(workspace, expert, base, data, out_folder, config, overrides, resume=resume)
    if plan:
        from afs_mlx.cli.planning import show_plan

        show_plan(request, as_json=as_json, force=force)
        return
    if hosts:
        words = _words(expert, base, data, out_folder, config, overrides)
        flags = [flag for flag, on in (("--resume", resume), ("--force", force), ("--json", as_json)) if on]
        raise typer.Exit(_on_hosts(hosts, words, flags))
    step(f"{'resume' if resume else 'train'} {request.label}")
    stop = threading.Event()
    with stoppable("the adapter", stop), TrainingView(request.title) as view:

        def on_event(event: TrainEvent) -> None:
            if isinstance(event, BaseChosen):
                if event.notice:
                    notice(event.notice)
                err().print(f"  base {event.id}" + (" (demo)" if event.demo else ""), markup=False)
            elif isinstance(event, RunCreated):
                err().print(f"  run {workspace.shown(event.path)}", markup=False)
            else:
                view(event)

        result = train_adapter(request.train_config(stop, force=force), on_event)
    _show(result, workspace, as_json=as_json)
    if result.interrupted:
        raise typer.Exit(ExitCode.INTERRUPTED)


def _show(result: "TrainResult", workspace: "Workspace", *, as_json: bool) -> None:
    from afs_mlx.core.ranks import rank_here
    from afs_mlx.runs.folder import Run
    from afs_mlx.runs.overview import resume_command

    if as_json:
        emit_json({"run": str(result.path), **{key: value for key, value in vars(result).items() if key != "path"}})
    else:
        state = "interrupted at" if result.interrupted else "stopped early at" if result.stopped_early else "finished"
        err().print(
            f"  {state} {result.steps} of {result.total_steps} steps in {duration(result.elapsed_s)}, "
            f"peak {size(round(result.peak_memory_gb * 1e9))}; valid loss {result.base_valid_loss:.3f} (base) → "
            f"{result.best_valid_loss:.3f} (best, step {result.best_step})",
            markup=False,
        )
        out().print(workspace.shown(result.path), markup=False)
    if result.interrupted and rank_here() == 0:
        notice(f"go on with: {resume_command(Run.read(result.path))}")
    if not result.improved:
        notice(
            "no step was better than the base on the validation rows, so this run will not answer: "
            "lower learning_rate, bring more rows, or let it run longer"
        )


def _words(
    expert: str,
    base: str,
    data: Path | None,
    out_folder: Path | None,
    config: Path | None,
    overrides: list[str] | None,
) -> list[str]:
    """What was asked for, as words of a command line."""
    words = [expert, "--base", base]
    for option, value in (("--data", data), ("--out", out_folder), ("--config", config)):
        words += [option, str(value)] if value is not None else []
    return words + [word for override in overrides or [] for word in ("--set", override)]


def _on_hosts(hosts: str, words: list[str], flags: list[str]) -> int:
    """Start this command once a rank; returns the exit code of all."""
    from afs_mlx.core.hosts import read_hosts
    from afs_mlx.core.ranks import launch

    argv = [sys.executable, "-m", "afs_mlx.cli.app", "train", *words, *flags]
    again = shlex.join(["afs-mlx", "train", *words, "--resume", "--hosts", hosts])
    return launch(argv, read_hosts(hosts), resume=again)
