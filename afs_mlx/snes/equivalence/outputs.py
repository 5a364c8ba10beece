"""What of a routine its callers can rely on, when nobody has declared it: read off how the reference behaves."""

from collections.abc import Sequence

from afs_mlx.schema.optimisation import Live
from afs_mlx.snes.cpu.opcodes import OPCODES
from afs_mlx.snes.equivalence.comparison import live_values
from afs_mlx.snes.execution.board import Outcome
from afs_mlx.snes.execution.entries import Entry
from afs_mlx.snes.execution.routine import Routine

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

    One that ends with the same value in all runs (a loop counter run down, the zero that was stored) is a left-over.
    A flag is relied on when the last instruction before the end that changes it exists to set it.
    """
    names: list[Live] = []
    registers: tuple[Live, ...] = ("a", "b", "x", "y")
    for name in registers:
        pairs = [(live_values(entry.state)[name], live_values(outcome.state)[name]) for entry, outcome in runs]
        if all(before == after for before, after in pairs) or len({after for _, after in pairs}) > 1:
            names.append(name)
    if all((entry.state.p ^ outcome.state.p) & 1 == 0 for entry, outcome in runs):
        names.append("c")
    written = [OPCODES[reference.code[place.offset]].name for place in reference.placed if not place.is_data]
    if "c" not in names and _last_of(written, _CHANGES_CARRY) in _SETS_CARRY_ON_PURPOSE:
        names.append("c")
    if _last_of(written, _CHANGES_NZ) in _SETS_NZ_ON_PURPOSE:
        names += ["z", "n"]
    if _last_of(written, _CHANGES_V) in _SETS_V_ON_PURPOSE:
        names.append("v")
    return tuple(names)


def _last_of(names: list[str], wanted: frozenset[str]) -> str:
    return next((name for name in reversed(names) if name in wanted), "")
