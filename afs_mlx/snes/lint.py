"""What Asar accepts without a word and a person mostly did not mean.

Cut-off numbers, numeric branch targets, `rep $30` and a dropped indirection are refused by the grammar already.
"""

import re

from afs_mlx.schema.optimisation import EntryState
from afs_mlx.snes.asar import Assembly
from afs_mlx.snes.execution.board import Board
from afs_mlx.snes.execution.entries import draw
from afs_mlx.snes.execution.routine import Routine
from afs_mlx.snes.grammar import Problem, parse

_MODE_BITS = re.compile(r"\b(rep|sep)(?:\.b)? #0*(10|20|30)$")
_RUNS, _BUDGET = 32, 4000


def lint(text: str) -> list[Problem]:
    """The doubtful lines of a text that the grammar accepts."""
    found: list[Problem] = []
    for number, line in enumerate(parse(text).lines, start=1):
        for command in line.split(" : "):
            bits = _MODE_BITS.search(command)
            if bits:
                name, value = bits.groups()
                found.append(Problem(number, f"{name} #{value} is decimal (${int(value):02X}); write {name} #${value}"))
    return found


def lint_execution(assembly: Assembly, entry: EntryState) -> list[Problem]:
    """What is noticed when a text is executed: immediates of another width than was reached, data executed."""
    routine = Routine.of(assembly)
    board = Board(routine)
    for index in range(_RUNS):
        board.execute(draw(entry, index, 0), _BUDGET)
    return sorted(routine.problem(note.offset, note.message) for note in board.notes)
