"""What of a routine its callers can rely on, when nobody has declared it: read off how the reference behaves."""

from collections.abc import Sequence

from afs_mlx.schema.optimisation import Live
from afs_mlx.snes.cpu.state import CARRY
from afs_mlx.snes.equivalence.comparison import live_values, memory_difference
from afs_mlx.snes.execution.board import Outcome
from afs_mlx.snes.execution.entries import Entry
from afs_mlx.snes.execution.routine import Routine

_FRAME_BYTES = 4
# After these a flag is a result; after all others it is a by-product.
_SETS_CARRY_ON_PURPOSE = frozenset(("clc", "sec", "cmp", "cpx", "cpy"))
_SETS_NZ_ON_PURPOSE = frozenset(("cmp", "cpx", "cpy", "bit"))
_SETS_V_ON_PURPOSE = frozenset(("bit", "clv"))
_CHANGES_V = _SETS_V_ON_PURPOSE.union(("adc", "sbc", "plp", "rep", "sep", "rti"))
_CHANGES_CARRY = _SETS_CARRY_ON_PURPOSE.union(
    ("adc", "sbc", "asl", "lsr", "rol", "ror", "plp", "rep", "sep", "xce", "rti")
)
_CHANGES_NZ = _SETS_NZ_ON_PURPOSE.union(
    ("adc", "and", "asl", "dec", "dex", "dey", "eor", "inc", "inx", "iny", "lda", "ldx", "ldy", "lsr", "ora", "pla"),
    ("plb", "pld", "plp", "plx", "ply", "rep", "rol", "ror", "rti", "sbc", "sep", "tax", "tay", "tcd", "tdc", "trb"),
    ("tsb", "tsc", "tsx", "txa", "txy", "tya", "tyx", "xba"),
)


def inferred(reference: Routine, runs: Sequence[tuple[Entry, Outcome]]) -> tuple[Live, ...]:
    """A register is relied on when it is left alone in every run, or carries a result that depends on the state.

    One that ends with the same value in all runs (a loop counter run down, the zero that was stored) is a left-over,
    unless the routine does nothing else. A flag is relied on when the last instruction before an end that changes it
    exists to set it.
    """
    registers: tuple[Live, ...] = ("a", "b", "x", "y")
    alone = {name for name in registers if all(_before(name, run) == _after(name, run) for run in runs)}
    varying = {name for name in registers if len({_after(name, run) for run in runs}) > 1}
    does_something = varying - alone or any(_leaves_traces(entry, outcome) for entry, outcome in runs)
    names: list[Live] = [name for name in registers if name in alone | varying or not does_something]
    names += _flags_on_purpose(reference, all((e.state.p ^ o.state.p) & CARRY == 0 for e, o in runs))
    return tuple(names)


def _before(name: Live, run: tuple[Entry, Outcome]) -> int:
    return live_values(run[0].state)[name]


def _after(name: Live, run: tuple[Entry, Outcome]) -> int:
    return live_values(run[1].state)[name]


def _leaves_traces(entry: Entry, outcome: Outcome) -> bool:
    top = max(entry.state.s, outcome.state.s) + _FRAME_BYTES  # the caller's return address is no trace of the routine
    return bool(outcome.events) or memory_difference(entry, outcome.ram, {}, top) is not None


def _flags_on_purpose(reference: Routine, carry_is_left_alone: bool) -> list[Live]:
    names = [opcode.name for opcode, _ in reference.opcodes]
    ends = [place for place, name in enumerate(names, start=1) if name in ("rts", "rtl", "rti")]
    if not ends or ends[-1] != len(names):
        ends.append(len(names))

    def on_purpose(changes: frozenset[str], purpose: frozenset[str]) -> bool:
        return any(_last_of(names[:end], changes) in purpose for end in ends)

    found: list[Live] = ["c"] if carry_is_left_alone or on_purpose(_CHANGES_CARRY, _SETS_CARRY_ON_PURPOSE) else []
    found += ["z", "n"] if on_purpose(_CHANGES_NZ, _SETS_NZ_ON_PURPOSE) else []
    found += ["v"] if on_purpose(_CHANGES_V, _SETS_V_ON_PURPOSE) else []
    return found


def _last_of(names: list[str], wanted: frozenset[str]) -> str:
    return next((name for name in reversed(names) if name in wanted), "")
