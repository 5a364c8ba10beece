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
    is executed with another length than it was assembled with is not meant, nor one under which nothing comes back
    where another does. Empty when none is left.
    """
    states = list(_combinations(declared))
    if len(states) == 1:
        return tuple(states)
    as_written = [state for state in states if not _board(routine, state).notes]
    return tuple(state for state in as_written if _comes_back(routine, state)) or tuple(as_written)


def as_8_bit(declared: Mapping[str, int]) -> EntryState:
    """The declared state with 8 bits for each width that is not declared, 16 for an index that needs them."""
    return EntryState.model_validate({"m": 8, "x": 16 if _has_wide_index(declared) else 8, **declared})


def _combinations(declared: Mapping[str, int]) -> Iterator[EntryState]:
    both = [8] if declared.get("e") == 1 else [8, 16]
    ms = [declared["m"]] if "m" in declared else both
    xs = [declared["x"]] if "x" in declared else [16] if _has_wide_index(declared) else both
    for m, x in product(ms, xs):
        yield EntryState.model_validate({**declared, "m": m, "x": x})


def _has_wide_index(declared: Mapping[str, int]) -> bool:
    return any(declared.get(name, 0) > 0xFF for name in ("x_value", "y"))


def _board(routine: Routine, state: EntryState) -> Board:
    """A board on which the routine has run a few times."""
    board = Board(routine)
    for index in range(TRIES):
        board.execute(draw(state, index, 0, routine.constants), _BUDGET)
    return board


def _comes_back(routine: Routine, state: EntryState) -> bool:
    board = Board(routine)
    return (
        2 * sum(board.execute(draw(state, index, 0, routine.constants), _BUDGET).returned for index in range(TRIES))
        >= TRIES
    )
