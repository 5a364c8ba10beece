"""One run, instruction by instruction, for a person or a debugger to look at."""

from collections.abc import Iterator
from dataclasses import dataclass

from afs_mlx.snes.cpu.control import Stopped
from afs_mlx.snes.cpu.opcodes import OPCODES, Opcode
from afs_mlx.snes.cpu.state import State
from afs_mlx.snes.disassembly.operands import data_address, target_of, text_of
from afs_mlx.snes.execution.board import Board, Outcome
from afs_mlx.snes.execution.entries import Entry
from afs_mlx.snes.registers.table import name_of


@dataclass(frozen=True)
class Step:
    """An executed instruction: where, its bytes and text, the user's line, the state after it, what it cost."""

    address: int
    code: bytes
    text: str
    comment: str
    line: int | None
    after: State
    cycles: int
    clocks: int


class Tracer:
    """Runs a routine step by step."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._stop = "budget"

    @property
    def outcome(self) -> Outcome:
        """What the steps taken so far left behind, and why there are no more."""
        return self._board.outcome(self._board.ended_as(self._stop))

    def steps(self, entry: Entry, budget: int) -> Iterator[Step]:
        """Every instruction after it was executed, at most `budget`."""
        board = self._board
        board.enter(entry)
        self._stop = "budget"
        try:
            for _ in range(budget):
                board.arrive(board.state.address)
                yield self._step()
        except Stopped as stopped:
            self._stop = stopped.args[0]

    def _step(self) -> Step:
        board, routine = self._board, self._board.routine
        address, cycles, clocks = board.state.address, board.cycles, board.clocks
        offset = routine.offset_of(address)
        opcode = OPCODES[routine.code[offset]]
        size_bytes = 1 + opcode.operand_bytes(board.m8, board.x8)
        code = routine.code[offset : offset + size_bytes]
        board.step()
        is_whole = len(code) == size_bytes
        operand = int.from_bytes(code[1:], "little")
        target = target_of(opcode, operand, address, size_bytes) if is_whole else None
        named = data_address(opcode, operand) if is_whole else None
        return Step(
            address=address,
            code=code,
            text=_text(opcode, operand, size_bytes, target) if is_whole else f"{opcode.name} (cut off)",
            comment=(named is not None and name_of(named)) or "",
            line=routine.line_at(offset),
            after=board.state,
            cycles=board.cycles - cycles,
            clocks=board.clocks - clocks,
        )


def _text(opcode: Opcode, operand: int, size_bytes: int, target: int | None) -> str:
    digits = 6 if opcode.mode == "al" else 4
    place = None if target is None else f"${target & (1 << 4 * digits) - 1:0{digits}x}"
    return text_of(opcode, operand, size_bytes, place)
