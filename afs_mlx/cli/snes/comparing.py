"""`afs-mlx snes equal`."""

from enum import StrEnum
from typing import Annotated

import typer

from afs_mlx.cli.options import AsJson
from afs_mlx.cli.render.console import emit_json, plain
from afs_mlx.cli.snes.arguments import (
    EntryOption,
    SeedOption,
    declared_entry,
    live_names,
    only_one_from_stdin,
    spans,
    text_of,
)
from afs_mlx.core.errors import ExitCode, MissingError


class Goal(StrEnum):
    """What a cheaper routine needs less of."""

    CYCLES = "cycles"
    BYTES = "bytes"


def equal(
    reference: Annotated[str, typer.Argument(metavar="REFERENCE", help="A file, - for standard input, or the code.")],
    candidate: Annotated[str, typer.Argument(metavar="CANDIDATE", help="The routine to hold against it.")],
    entry: EntryOption = "",
    live: Annotated[
        str | None,
        typer.Option(
            "--live",
            metavar="NAMES",
            help="What is read afterwards: a, b, x, y, c, z, n, v or none; without it, inferred.",
        ),
    ] = None,
    scratch: Annotated[
        str, typer.Option("--scratch", metavar="RANGES", help="Memory that nobody reads afterwards: 10-1F,7E2000.")
    ] = "",
    goal: Annotated[
        Goal | None, typer.Option("--goal", help="Ask also that the candidate needs fewer cycles or bytes.")
    ] = None,
    states: Annotated[int, typer.Option("--states", min=16, max=100_000, help="From how many states to run.")] = 512,
    seed: SeedOption = 0,
    as_json: AsJson = False,
) -> None:
    """Whether a routine does what another does.

    Both are run from many states. Compared are how they end, S, D, the banks, the modes, what is live, port accesses
    in order, and all memory but the 96 bytes below S. Exit code 0: equal (and cheaper, with --goal); 1: not, or not
    verifiable; 3: Asar is missing.
    """
    from afs_mlx.cli.render import snes as render
    from afs_mlx.snes.equivalence.judging import judge

    only_one_from_stdin((reference, candidate))
    judgement = judge(
        text_of(reference),
        text_of(candidate),
        declared_entry(entry),
        live=live_names(live),
        scratch=spans(scratch),
        states=states,
        seed=seed,
    )
    cheaper = goal is None or (judgement.report is not None and judgement.report.cheaper(goal.value))
    if as_json:
        emit_json(render.judgement_json(judgement))
    else:
        render.judgement(judgement, live is None)
        if judgement.verdict == "equal" and not cheaper:
            render.not_cheaper(str(goal))
    if judgement.verdict == "not verified":
        raise MissingError(f"not verified: {plain(judgement.why)}", "equal", "make setup, or put asar on the PATH")
    if judgement.verdict != "equal" or not cheaper:
        raise typer.Exit(ExitCode.ERROR)
