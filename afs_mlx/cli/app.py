"""The command table."""

import os
from typing import Annotated

import typer

from afs_mlx import __version__
from afs_mlx.cli import (
    adapters,
    bases,
    build,
    chatting,
    convert,
    deploy,
    evaluate,
    experts,
    export,
    export_lmstudio,
    export_ollama,
    fuse,
    routing,
    runs,
    training,
)
from afs_mlx.cli.errors import DEBUG, handled
from afs_mlx.cli.snes.app import app as snes_app

app = typer.Typer(
    name="afs-mlx",
    help="Train, prove, ship and run small expert language models on one laptop, offline.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"afs-mlx {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    # Read by huggingface_hub and transformers when they are first imported.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if debug:
        os.environ[DEBUG] = "1"


export_app = typer.Typer(no_args_is_help=True, help="Write a model for other programs.", rich_markup_mode=None)
export_app.command("gguf")(handled(export.gguf))
export_app.command("ollama")(handled(export_ollama.ollama))
export_app.command("lmstudio")(handled(export_lmstudio.lmstudio))
export_app.command("peft")(handled(export.peft))

for name, command in (
    ("doctor", bases.doctor),
    ("pull", bases.pull),
    ("train", training.train),
    ("eval", evaluate.evaluate),
    ("fuse", fuse.fuse),
    ("convert", convert.convert),
    ("build", build.build),
    ("deploy", deploy.deploy),
    ("chat", chatting.chat),
):
    app.command(name)(handled(command))
app.add_typer(experts.app, name="experts")
app.add_typer(export_app, name="export")
app.add_typer(adapters.app, name="adapters")
app.add_typer(runs.app, name="runs")
app.add_typer(routing.app, name="route")
app.add_typer(snes_app, name="snes")


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
