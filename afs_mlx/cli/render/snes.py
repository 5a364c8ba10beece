"""How 65816 runs, costs and verdicts look on a terminal, and the same as plain data for --json."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from afs_mlx.cli.render.console import err, out, plain

if TYPE_CHECKING:
    from afs_mlx.schema.optimisation import EntryState
    from afs_mlx.snes.cpu.state import State
    from afs_mlx.snes.equivalence.checker import CounterExample
    from afs_mlx.snes.equivalence.judging import Judgement
    from afs_mlx.snes.execution.board import Board, Note, Outcome
    from afs_mlx.snes.execution.cost import Cost
    from afs_mlx.snes.execution.entries import Entry
    from afs_mlx.snes.execution.routine import Routine
    from afs_mlx.snes.execution.tracing import Step
    from afs_mlx.snes.grammar import Problem

MEMORY_ROWS = 16
MIN_COLUMNS = 80  # a pipe, or a terminal that does not say
_WIDE = 112  # columns from which on the trace shows bytes and D, DBR


# ---- one run ---------------------------------------------------------------------------------------


def noted(notes: "Iterable[Note]", routine: "Routine") -> "list[Problem]":
    """What was noticed in execution, at the lines of the text."""
    return [routine.problem(note.offset, note.message) for note in notes]


def registers(state: "State") -> str:
    """All registers in a line."""
    mode = " e" if state.e else ""
    return (
        f"A {state.a:04X}  X {state.x:04X}  Y {state.y:04X}  S {state.s:04X}  D {state.d:04X}  "
        f"DBR {state.dbr:02X}  {state.flags()}{mode}"
    )


def trace_head() -> None:
    """The columns of the trace."""
    bytes_column, more = (f"{'bytes':<13}", "    D    B") if out().width >= _WIDE else ("", "")
    head = f"{'line':>4} address  {bytes_column}{'instruction':<22}   A    X    Y    S{more}  flags    cycles"
    out().print(head, style="bold", markup=False)


def trace_line(step: "Step") -> None:
    """One executed instruction and the state after it."""
    from rich.text import Text

    wide = out().width >= _WIDE
    after = step.after
    more = f" {after.d:04X} {after.dbr:02X}" if wide else ""
    shown = f"{step.code.hex(' '):<13}" if wide else ""
    row = Text(f"{step.line or '':>4} {step.address:06X}   {shown}")
    row.append(f"{step.text:<22}", style="bold")
    row.append(f" {after.a:04X} {after.x:04X} {after.y:04X} {after.s:04X}{more}  {after.flags()} {step.cycles:>6}")
    if step.comment and row.cell_len + 2 + len(step.comment) <= max(out().width, MIN_COLUMNS):
        row.append(f"  {step.comment}", style="cyan")
    out().print(row)


def run_result(board: "Board", entry: "Entry", outcome: "Outcome") -> None:
    """How a run ended and what it left behind."""
    console, routine = out(), board.routine
    where = "" if outcome.returned or outcome.stop.startswith("leaves") else f" at ${outcome.state.address:06X}"
    size = f"{len(routine.code)} byte{'s' if len(routine.code) != 1 else ''}"
    console.print(
        f"{outcome.stop}{where}: {size}, {outcome.cycles:,} cycles, {outcome.clocks:,} clocks",
        style="bold",
        markup=False,
    )
    console.print(f"in   {registers(entry.state)}\nout  {registers(outcome.state)}", markup=False)
    changes = list(changed(board, entry, outcome))
    for address, before, after in changes[:MEMORY_ROWS]:
        console.print(f"mem  ${address:06X}  {before.hex(' ')} → {after.hex(' ')}", markup=False)
    if len(changes) > MEMORY_ROWS:
        console.print(f"mem  … and {len(changes) - MEMORY_ROWS} more stretches (--json shows all)", markup=False)
    for kind, address, value in outcome.events:
        console.print(
            f"port {'write' if kind == 'w' else 'read '} ${address:04X} ${value:02X}{_name(address)}", markup=False
        )


def _name(address: int) -> str:
    from afs_mlx.snes.registers.table import name_of

    name = name_of(address)
    return f"  {name}" if name else ""


def changed(board: "Board", entry: "Entry", outcome: "Outcome") -> "Iterable[tuple[int, bytes, bytes]]":
    """Stretches of up to eight changed bytes: address, before, after; the dead bytes below S are left out."""
    from afs_mlx.snes.execution.entries import STACK_BYTES, address_of

    for number in sorted(outcome.ram):
        before, after = bytearray(entry.ram[number]), outcome.ram[number]
        dead = range(0)
        if number == 0:
            dead = range(max(0, min(entry.state.s, outcome.state.s) - STACK_BYTES), outcome.state.s + 1)
            for address, value in board.frame:
                before[address] = value
        offset = 0
        while offset < len(after):
            if before[offset] == after[offset] or offset in dead:
                offset += 1
                continue
            end = offset + 1
            while end < min(len(after), offset + 8) and before[end] != after[end] and end not in dead:
                end += 1
            yield address_of(number, offset), bytes(before[offset:end]), after[offset:end]
            offset = end


def run_json(
    board: "Board",
    entry: "Entry",
    outcome: "Outcome",
    notes: "Sequence[Problem]",
    steps: "Sequence[Step] | None",
) -> dict[str, Any]:
    """A run as plain data."""
    data: dict[str, Any] = {
        "stop": outcome.stop,
        "returned": outcome.returned,
        "size_bytes": len(board.routine.code),
        "cycles": outcome.cycles,
        "clocks": outcome.clocks,
        "in": entry.state._asdict(),
        "out": outcome.state._asdict(),
        "memory": [
            {"address": address, "before": before.hex(), "after": after.hex()}
            for address, before, after in changed(board, entry, outcome)
        ],
        "ports": [{"kind": kind, "address": address, "value": value} for kind, address, value in outcome.events],
        "notes": [{"line": note.line, "message": note.message} for note in notes],
    }
    if steps is not None:
        data["trace"] = [
            {
                "line": step.line,
                "address": step.address,
                "code": step.code.hex(),
                "text": step.text,
                "register": step.comment,
                "after": step.after._asdict(),
                "cycles": step.cycles,
                "clocks": step.clocks,
            }
            for step in steps
        ]
    return data


# ---- cost ------------------------------------------------------------------------------------------


def cost_table(rows: Sequence[dict[str, Any]]) -> None:
    """Routines below each other; figures that vary are the median with the least and the most."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("routine", "bytes", "cycles", "clocks", "states"):
        table.add_column(heading, justify="left" if heading == "routine" else "right")
    for row in rows:
        cost: Cost = row["cost"]
        name = " ".join(plain(row["code"]).split())
        cells = (name if len(name) <= 32 else f"{name[:31]}…", cost.size_bytes, cost.cycles, cost.clocks, row["states"])
        table.add_row(*(Text(str(cell)) for cell in cells))
    out().print(table)
    for entries in dict.fromkeys(row["entries"] for row in rows):
        err().print(f"entered with {_entries(entries)}", markup=False)
    err().print("clocks are 21.477 MHz, without DRAM refresh", markup=False)


def cost_json(row: dict[str, Any]) -> dict[str, Any]:
    """A routine's cost as plain data."""
    entries = [entry.model_dump(exclude_none=True) for entry in row["entries"]]
    return {"code": row["code"], "states": row["states"], "entries": entries, **_cost_data(row["cost"])}


def _cost_data(cost: "Cost | None") -> dict[str, Any]:
    if cost is None:
        return {}
    spreads = {
        name: {"least": spread.least, "median": spread.median, "most": spread.most, "mean": spread.mean}
        for name, spread in (("cycles", cost.cycles), ("clocks", cost.clocks))
    }
    return {"size_bytes": cost.size_bytes, **spreads}


def _entries(entries: "Sequence[EntryState]") -> str:
    return " or ".join(_entry(entry) for entry in entries)


def _entry(entry: "EntryState") -> str:
    facts = [entry.sentence()]
    for name, value in (("A", entry.a), ("X", entry.x_value), ("Y", entry.y)):
        facts += [f"{name}=${value:04X}"] if value is not None else []
    facts += [f"carry {entry.c}"] if entry.c is not None else []
    return ", ".join([*facts, *(["decimal mode"] if entry.decimal else [])])


# ---- verdicts --------------------------------------------------------------------------------------


def judgement(found: "Judgement", is_inferred: bool) -> None:
    """The verdict first, then what was compared, what shows the difference or what both cost."""
    console = out()
    style = "green" if found.verdict == "equal" else "red" if found.verdict in ("differs", "no return") else "yellow"
    console.print(f"{found.verdict}: {plain(found.why)}", style=f"bold {style}", markup=False)
    for problem in found.notes():
        console.print(f"  {plain(str(problem))}", markup=False)
    report = found.report
    if report is None:
        return
    names = " ".join(name.upper() if name in "abxy" else f"flag {name}" for name in report.live) or "no register"
    source = "inferred from the reference; --live names others" if is_inferred else "as declared"
    console.print(f"entered   {_entries(found.entries)}; anything else as it comes", markup=False)
    console.print(f"live      {names} ({source})", markup=False)
    for routine, line in report.unreached:
        console.print(f"unknown   line {line} of the {routine} was reached from no state", style="yellow", markup=False)
    if report.counter_example is not None:
        _counter_example(report.counter_example)
    elif report.reference is not None and report.candidate is not None:
        _costs(report.reference, report.candidate)


def not_cheaper(goal: str) -> None:
    """Equal, but that was not all that was asked."""
    out().print(f"not cheaper in {goal}", style="bold red", markup=False)


def _costs(reference: "Cost", candidate: "Cost") -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("", "bytes", "cycles", "clocks"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, cost in (("reference", reference), ("candidate", candidate)):
        table.add_row(name, str(cost.size_bytes), str(cost.cycles), str(cost.clocks))
    out().print(table)


def _counter_example(example: "CounterExample") -> None:
    console = out()
    console.print(f"from      {registers(example.entry.state)}", markup=False)
    if memory := _memory_that_matters(example.entry):
        console.print(f"memory    {memory}", markup=False)
    for name, outcome in (("reference", example.expected), ("candidate", example.got)):
        console.print(f"{name} {registers(outcome.state)}  {outcome.stop}", markup=False)


def _memory_that_matters(entry: "Entry", most: int = 8) -> str:
    """The bytes that are not zero, where the state could be made simple enough to name them."""
    found = list(_bytes_not_zero(entry, most))
    if len(found) > most:
        return "many bytes (--json shows them)"
    return "  ".join(f"${address:06X}={value:02X}" for address, value in found) + (
        ", the rest 00" if found else "all 00"
    )


def _bytes_not_zero(entry: "Entry", most: int) -> "Iterable[tuple[int, int]]":
    from afs_mlx.snes.execution.entries import address_of

    left = most + 1
    for number, block in enumerate(entry.ram):
        if any(block):
            for offset, value in enumerate(block):
                if value and left:
                    left -= 1
                    yield address_of(number, offset), value
        if not left:
            return


def judgement_json(found: "Judgement") -> dict[str, Any]:
    """A verdict as plain data."""
    data: dict[str, Any] = {
        "verdict": found.verdict,
        "why": plain(found.why),
        "entries": [entry.model_dump(exclude_none=True) for entry in found.entries],
        "notes": [{"line": note.line, "message": plain(note.message)} for note in found.notes()],
    }
    report = found.report
    if report is None:
        return data
    data |= {
        "states": report.states,
        "live": list(report.live),
        "unreached": [{"routine": routine, "line": line} for routine, line in report.unreached],
        "reference": _cost_data(report.reference),
        "candidate": _cost_data(report.candidate),
        "cheaper": {goal: report.cheaper(goal) for goal in ("cycles", "bytes")},
    }
    if report.counter_example is not None:
        example = report.counter_example
        memory = list(_bytes_not_zero(example.entry, 4096))
        data["counter_example"] = {
            "in": example.entry.state._asdict(),
            "memory": [{"address": address, "value": value} for address, value in memory],
            "where": example.difference.where,
            "expected": example.difference.expected,
            "got": example.difference.got,
            "reference": {"stop": example.expected.stop, "out": example.expected.state._asdict()},
            "candidate": {"stop": example.got.stop, "out": example.got.state._asdict()},
        }
    return data
