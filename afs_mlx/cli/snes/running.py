"""`afs-mlx snes run` and `cost`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from afs_mlx.cli.options import AsJson
from afs_mlx.cli.render.console import emit_json, notice
from afs_mlx.cli.snes.arguments import (
    Code,
    EntryOption,
    OrgOption,
    SeedOption,
    address,
    declared_entry,
    hex_bytes,
    only_one_from_stdin,
    text_of,
)
from afs_mlx.core.errors import AfsError, MissingError, UsageError, problems

if TYPE_CHECKING:
    from afs_mlx.schema.optimisation import EntryState
    from afs_mlx.snes.execution.entries import Entry
    from afs_mlx.snes.execution.routine import Routine

DEFAULT_BUDGET = 100_000
_S = 0x1FF0


def routine_of(code: str, org: str) -> "Routine":
    """Assemble what a command was given. Raises MissingError without Asar, AfsError with every line in error."""
    from afs_mlx.snes.asar import assemble
    from afs_mlx.snes.execution.routine import Routine

    result = assemble(text_of(code), address(org, "--org"))
    if result.status == "unavailable":
        raise MissingError("not verified: Asar is not installed", "snes", "make setup, or put asar on the PATH")
    if result.status == "failed":
        raise problems([str(error) for error in result.errors], "it does not assemble", code[:60], "mend these lines")
    return Routine.of(result)


def entries_of(routine: "Routine", declared: Mapping[str, int]) -> tuple["EntryState", ...]:
    """The declared state, with each width tried that was left open. Raises UsageError when none fits."""
    from afs_mlx.snes.equivalence.widths import entry_states

    entries = entry_states(routine, declared)
    if not entries:
        raise UsageError(
            "under no widths of A and X/Y does this run as it is written", "--entry", "declare them: --entry m=8,x=16"
        )
    return entries


def run(
    code: Code,
    entry: EntryOption = "",
    org: OrgOption = "$008000",
    poke: Annotated[
        list[str] | None,
        typer.Option("--poke", metavar="ADDRESS=BYTES", help="Memory before the run, in hexadecimal; may be repeated."),
    ] = None,
    trace: Annotated[bool, typer.Option("--trace", help="Show every instruction.")] = False,
    budget: Annotated[int, typer.Option("--budget", min=1, help="Instructions at most.")] = DEFAULT_BUDGET,
    breaks: Annotated[
        list[str] | None, typer.Option("--break", metavar="ADDRESS", help="Stop before this; may be repeated.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Draw what is not declared; without it, it is zero.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Execute a routine once.

    Shows registers, memory, ports in order, cycles and master clocks. A routine that ends with a return is entered as
    called; the run ends where it returns, falls off its end or leaves, and exits with 0 however it ends. Memory is a
    LoROM board. Clocks leave out DRAM refresh; the screen, sound, DMA and interrupts are not modelled.
    """
    from afs_mlx.cli.render import snes as render
    from afs_mlx.snes.execution.board import Board
    from afs_mlx.snes.execution.tracing import Tracer

    routine = routine_of(code, org)
    declared = entry_state(routine, declared_entry(entry))
    start = poked(_start(declared, seed), poke or [])
    at_org = start.state._replace(pc=routine.org & 0xFFFF, pbr=routine.org >> 16)
    start = replace(start, state=at_org)
    board = Board(routine)
    board.stop_at(address(at, "--break") for at in breaks or [])
    tracer = Tracer(board)
    steps = []
    if trace and not as_json:
        render.trace_head()
    for step in tracer.steps(start, budget):
        if trace and as_json:
            steps.append(step)
        elif trace:
            render.trace_line(step)
    notes = render.noted(sorted(board.notes), routine)
    if as_json:
        emit_json(render.run_json(board, start, tracer.outcome, notes, steps if trace else None))
        return
    for note in notes:
        notice(str(note))
    render.run_result(board, start, tracer.outcome)


def entry_state(routine: "Routine", declared: Mapping[str, int]) -> "EntryState":
    """The state to enter in: the first of the widths that fit, 8 bits where none does."""
    from afs_mlx.snes.equivalence.widths import as_8_bit, entry_states

    fitting = entry_states(routine, declared)
    return fitting[0] if fitting else as_8_bit(declared)


def _start(declared: "EntryState", seed: int | None) -> "Entry":
    """Drawn from a seed, or with zero for everything that is not declared."""
    from afs_mlx.snes.cpu.memory import BLOCK_BYTES
    from afs_mlx.snes.cpu.state import M8, X8, State
    from afs_mlx.snes.execution.entries import RAM_BLOCKS, Entry, draw

    if seed is not None:
        return draw(declared, 1, seed)
    zero = {"a": 0, "x_value": 0, "y": 0, "d": 0, "dbr": 0, "c": 0}
    full = declared.model_copy(update={key: value for key, value in zero.items() if getattr(declared, key) is None})
    drawn = draw(full, 1, 0).state
    keep = M8 | X8 | 0x08 | 0x01  # the widths, decimal and carry are declared; the other flags are clear
    state = State(**{**drawn._asdict(), "p": drawn.p & keep, "s": 0x01F0 if full.e else _S, "a": full.a or 0})
    return Entry(state, (bytes(BLOCK_BYTES),) * RAM_BLOCKS, 0)


def poked(entry: "Entry", pokes: list[str]) -> "Entry":
    """Memory with bytes put into it. Raises UsageError for what is no RAM or no bytes."""
    from afs_mlx.snes.execution.entries import block_of

    blocks = [bytearray(block) for block in entry.ram]
    for poke in pokes:
        place, sign, values = poke.partition("=")
        if not sign:
            raise UsageError(f"{poke!r} is not ADDRESS=BYTES", "--poke", "write for example --poke 7E0010=0A1B")
        at = address(place, "--poke")
        for distance, value in enumerate(hex_bytes(values, "--poke")):
            found = block_of(at + distance & 0xFFFFFF)
            if found is None:
                raise UsageError(f"${at + distance:06X} is no RAM", "--poke", "take an address in WRAM or save RAM")
            blocks[found[0]][found[1]] = value
    return replace(entry, ram=tuple(bytes(block) for block in blocks))


def cost(
    codes: Annotated[list[str], typer.Argument(metavar="CODE...", help="Files, or the code itself.")],
    entry: EntryOption = "",
    org: OrgOption = "$008000",
    states: Annotated[int, typer.Option("--states", min=1, max=100_000, help="From how many states to run.")] = 512,
    seed: SeedOption = 0,
    fast: Annotated[bool, typer.Option("--fast", help="FastROM: banks $80-$FF take 6 clocks.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bytes, cycles and clocks of routines.

    Cycles and master clocks are the median, the least and the most over many states.
    """
    from afs_mlx.cli.render import snes as render
    from afs_mlx.snes.equivalence.checker import Checker, Contract

    only_one_from_stdin(codes)
    rows: list[dict[str, Any]] = []
    for code in codes:
        routine = routine_of(code, org)
        entries = entries_of(routine, declared_entry(entry))
        checker = Checker(routine, Contract(entries, live=()), states, seed, fast, exactly=True)
        if checker.problem or checker.cost is None:
            raise AfsError(checker.problem or "there is nothing to measure", code[:60], "declare more with --entry")
        for line in checker.unreached:
            notice(f"line {line} was reached from no state: its cost is not in the figures")
        for note in render.noted(checker.notes, routine):
            notice(str(note))
        rows.append({"code": code, "entries": entries, "cost": checker.cost, "states": len(checker.runs)})
    if as_json:
        emit_json({"routines": [render.cost_json(row) for row in rows]})
        return
    render.cost_table(rows)
