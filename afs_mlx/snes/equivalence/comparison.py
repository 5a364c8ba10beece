"""Compares what two runs from the same state left behind. Runs nothing."""

from dataclasses import dataclass

from afs_mlx.schema.optimisation import Live
from afs_mlx.snes.cpu.memory import BLOCK_BYTES
from afs_mlx.snes.cpu.state import CARRY, DECIMAL, IRQ_DISABLE, M8, NEGATIVE, OVERFLOW, X8, ZERO, State
from afs_mlx.snes.execution.board import Outcome
from afs_mlx.snes.execution.entries import STACK_BYTES, Entry, address_of
from afs_mlx.snes.execution.ports import PortEvent

type Span = tuple[int, int]
"""First and last address of a stretch of memory, 24 bits each."""

_FLAGS = {"c": CARRY, "z": ZERO, "n": NEGATIVE, "v": OVERFLOW}
_MODES = {"m": M8, "x": X8, "decimal": DECIMAL, "irq-disable": IRQ_DISABLE}


ENDING = "how it ends"


@dataclass(frozen=True)
class Difference:
    """The first thing in which two runs differ: where, what the reference has there and what the candidate has."""

    where: str
    expected: str
    got: str

    def __str__(self) -> str:
        if self.where == ENDING:
            return f"the reference {self.expected}, the candidate {self.got}"
        return f"{self.where}: {self.expected} expected, {self.got} found"


def first_difference(
    entry: Entry, expected: Outcome, got: Outcome, live: tuple[Live, ...], scratch: tuple[Span, ...] = ()
) -> Difference | None:
    """How they end, stack, banks, D and modes, what is live, port accesses in order, memory; None when all is equal.

    Dead are the bytes below the final stack pointer and the `scratch` spans.
    """
    if expected.stop != got.stop:
        return Difference(ENDING, expected.stop, got.stop)
    return (
        _in_machine_state(expected.state, got.state)
        or _in_live(expected.state, got.state, live)
        or _in_events(expected.events, got.events)
        or _in_dma(entry, expected, got, scratch)
        or memory_difference(entry, expected.ram, got.ram, expected.state.s, scratch)
    )


def _in_machine_state(expected: State, got: State) -> Difference | None:
    for name, one, other in (
        ("S", expected.s, got.s), ("D", expected.d, got.d),
        ("DBR", expected.dbr, got.dbr), ("PBR", expected.pbr, got.pbr),
    ):  # fmt: skip
        if one != other:
            return Difference(name, f"${one:04X}", f"${other:04X}")
    if expected.e != got.e:
        return Difference("flag e", str(expected.e), str(got.e))
    return _in_flags(expected, got, _MODES)


def _in_flags(expected: State, got: State, flags: dict[str, int]) -> Difference | None:
    for name, bit in flags.items():
        if (expected.p ^ got.p) & bit:
            return Difference(f"flag {name}", str(int(expected.p & bit != 0)), str(int(got.p & bit != 0)))
    return None


def live_values(state: State) -> dict[Live, int]:
    """The value of each thing that may be live, at the widths of the state; `b` is the accumulator's upper byte."""
    return {
        "a": state.a & (0xFF if state.p & M8 else 0xFFFF),
        "b": state.a >> 8,
        "x": state.x,
        "y": state.y,
        "c": int(state.p & CARRY != 0),
        "z": int(state.p & ZERO != 0),
        "n": int(state.p & NEGATIVE != 0),
        "v": int(state.p & OVERFLOW != 0),
    }


def _in_live(expected: State, got: State, live: tuple[Live, ...]) -> Difference | None:
    ones, others = live_values(expected), live_values(got)
    for name in live:
        if ones[name] != others[name]:
            if name in _FLAGS:
                return Difference(f"flag {name}", str(ones[name]), str(others[name]))
            return Difference(name.upper(), f"${ones[name]:04X}", f"${others[name]:04X}")
    return None


def _in_events(expected: tuple[PortEvent, ...], got: tuple[PortEvent, ...]) -> Difference | None:
    if expected == got:
        return None
    place = next(
        (n for n, (one, other) in enumerate(zip(expected, got, strict=False)) if one != other),
        min(len(expected), len(got)),
    )
    return Difference(f"port access {place + 1}", _event(expected, place), _event(got, place))


def _event(events: tuple[PortEvent, ...], place: int) -> str:
    if place >= len(events):
        return "none"
    kind, address, value = events[place]
    return f"{'write' if kind == 'w' else 'read'} ${value:02X} {'to' if kind == 'w' else 'from'} ${address:04X}"


def _dead(entry: Entry, s: int) -> range:
    """What the routine pushed and has pulled again, at a stack pointer."""
    return range(max(min(s, entry.state.s) - STACK_BYTES, 0), s + 1)


def _in_dma(entry: Entry, expected: Outcome, got: Outcome, scratch: tuple[Span, ...]) -> Difference | None:
    """The transfers read memory as it is when they start; what is on the stack then is no concern of theirs."""
    for one, other in zip(expected.dma, got.dma, strict=True):  # as often as the port was written, which is compared
        if found := memory_difference(entry, one, other, entry.state.s, scratch):
            return Difference(f"{found.where} when DMA starts", found.expected, found.got)
    return None


def memory_difference(
    entry: Entry, expected: dict[int, bytes], got: dict[int, bytes], s: int, scratch: tuple[Span, ...] = ()
) -> Difference | None:
    """The first byte of the written blocks that differs; dead is what lies below a stack pointer `s`."""
    dead = _dead(entry, s)
    for number in sorted(expected.keys() | got.keys()):
        one = expected.get(number, entry.ram[number])
        other = got.get(number, entry.ram[number])
        if one == other:
            continue
        for offset in range(BLOCK_BYTES):
            if one[offset] == other[offset] or (number == 0 and offset in dead):
                continue
            address = address_of(number, offset)
            if not any(first <= address <= last for first, last in scratch):
                before = entry.ram[number][offset]
                return Difference(f"${address:06X}", _byte(one[offset], before), _byte(other[offset], before))
    return None


def _byte(value: int, before: int) -> str:
    return f"${value:02X} (unchanged)" if value == before else f"${value:02X}"
