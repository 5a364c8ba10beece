"""The command group `afs-mlx snes`."""

import typer

from afs_mlx.cli.errors import handled
from afs_mlx.cli.snes import assembling, comparing, reference, running

app = typer.Typer(
    no_args_is_help=True,
    help="65816 code and SNES registers: assemble, run, time, compare, look up. Quote code: 'lda #$00'.",
    rich_markup_mode=None,
)
for command in (
    assembling.asm,
    assembling.disasm,
    running.run,
    running.cost,
    comparing.equal,
    reference.register,
    reference.verify,
):
    app.command(command.__name__)(handled(command))
