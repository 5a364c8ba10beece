"""The register widths that a routine was written for, when nobody has declared them."""

from collections.abc import Iterator, Mapping
from itertools import product

from afs_mlx.schema.optimisation import EntryState
from afs_mlx.snes.execution.board import Board
from afs_mlx.snes.execution.entries import draw
from afs_mlx.snes.execution.routine import Routine

TRIES = 24
_BUDGET = 4000


def entry_states(routine: Routine, declared: Mapping[str, int]) -> tuple[EntryState, ...]:
    """Every entry state with the declared keys under which the routine runs as it was written.

    A declared width is taken as it is. For one that is not, 8 and 16 bits are tried: a width under which an immediate
    is executed with another length than it was assembled with, or nothing comes back, is not meant. Empty when none is
    left.
    """
    states = list(_combinations(declared))
    if len(states) == 1:
        return tuple(states)
    return tuple(state for state in states if _runs_as_written(routine, state))


def _combinations(declared: Mapping[str, int]) -> Iterator[EntryState]:
    emulation = declared.get("e") == 1
    widths = {name: [declared[name]] if name in declared else [8] if emulation else [8, 16] for name in ("m", "x")}
    for m, x in product(widths["m"], widths["x"]):
        yield EntryState.model_validate({**declared, "m": m, "x": x})


def _runs_as_written(routine: Routine, state: EntryState) -> bool:
    board = Board(routine)
    returned = sum(board.execute(draw(state, index, 0), _BUDGET).returned for index in range(TRIES))
    return not board.notes and 2 * returned >= TRIES
