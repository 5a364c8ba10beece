"""Makes a counter-example small: registers and memory become zero wherever the two routines still differ."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from afs_mlx.schema.optimisation import EntryState
from afs_mlx.snes.cpu.memory import BLOCK_BYTES
from afs_mlx.snes.cpu.state import CARRY, NEGATIVE, OVERFLOW, ZERO
from afs_mlx.snes.equivalence.comparison import Difference
from afs_mlx.snes.execution.entries import RAM_BLOCKS, Entry

type Differ = Callable[[Entry], Difference | None]
"""The difference from a state; None when the routines agree there or the state is not one to be judged by."""

_ZERO_BLOCK = bytes(BLOCK_BYTES)
_LEAST_CHUNK = 1
TRIES = 160


@dataclass
class Shrinker:
    """Tries simpler states until `tries` are used up; keeps each one that still shows a difference."""

    differ: Differ
    entry: Entry
    found: Difference
    tries: int

    def shrink(self, declared: EntryState) -> None:
        """Leave in `entry` and `found` the simplest state met and its difference."""
        self._memory_blocks()
        self._registers(declared)
        self._block_0()

    def _keeps(self, entry: Entry) -> bool:
        if self.tries == 0 or entry == self.entry:
            return False
        self.tries -= 1
        difference = self.differ(entry)
        if difference is None:
            return False
        self.entry, self.found = entry, difference
        return True

    def _memory_blocks(self) -> None:
        low = self.entry.ram[0]
        if self._keeps(replace(self.entry, ram=(low, *[_ZERO_BLOCK] * (RAM_BLOCKS - 1)))):
            return
        for number in range(1, RAM_BLOCKS):
            blocks = list(self.entry.ram)
            blocks[number] = _ZERO_BLOCK
            self._keeps(replace(self.entry, ram=tuple(blocks)))

    def _registers(self, declared: EntryState) -> None:
        free = {"x": declared.x_value, "y": declared.y, "a": declared.a, "d": declared.d, "dbr": declared.dbr}
        for name, fixed in free.items():
            if fixed is not None:
                continue
            now = getattr(self.entry.state, name)
            for value in (0, 1, now & 0xFF):
                if value == now or self._keeps(replace(self.entry, state=self.entry.state._replace(**{name: value}))):
                    break
        for bit in (OVERFLOW, NEGATIVE, ZERO, CARRY):
            if bit != CARRY or declared.c is None:
                self._keeps(replace(self.entry, state=self.entry.state._replace(p=self.entry.state.p & ~bit)))

    def _block_0(self) -> None:
        """Zero block 0 in halves, quarters and so on: what is left is what matters."""
        if self._keeps(replace(self.entry, ram=(_ZERO_BLOCK, *self.entry.ram[1:]))):
            return
        chunks = [(0, BLOCK_BYTES)]
        while chunks and self.tries:
            first, size = chunks.pop(0)
            block = self.entry.ram[0]
            if not any(block[first : first + size]):
                continue
            zeroed = block[:first] + bytes(size) + block[first + size :]
            if not self._keeps(replace(self.entry, ram=(zeroed, *self.entry.ram[1:]))) and size > _LEAST_CHUNK:
                chunks += [(first, size // 2), (first + size // 2, size // 2)]
