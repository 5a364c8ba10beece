"""Runs a routine on a LoROM board from a given state and tells how it ended and what it left behind. Judges nothing.

The routine's own bytes are kept out of the readable memory: fetching sees them, and reading them as data is noticed,
since another routine has other bytes there. A block of RAM is laid out when it is first read and copied when it is
first written, so a run costs what it touches.
"""

import random
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache

from afs_mlx.snes.cpu.control import Stopped
from afs_mlx.snes.cpu.core import Cpu, Fetched
from afs_mlx.snes.cpu.memory import BLOCK_BITS, BLOCK_BYTES, lorom
from afs_mlx.snes.cpu.opcodes import OPCODES
from afs_mlx.snes.cpu.state import State
from afs_mlx.snes.execution.entries import RAM_BLOCKS, Entry
from afs_mlx.snes.execution.ports import PortEvent, Ports, is_port
from afs_mlx.snes.execution.routine import ROM_BYTES, EnteredBy, Routine, rom_offset

SRAM_BYTES = 32 * 1024
# In the low half of a bank no ROM lies, so no routine either; where in it differs from run to run.
RETURN_FIRST, RETURN_PLACES = 0x6000, 0x1F00
SURROUNDINGS = 4  # ROMs around the routine, told apart by the run
MDMAEN, HDMAEN = 0x420B, 0x420C
_OFFSET = BLOCK_BYTES - 1


@dataclass(frozen=True)
class Outcome:
    """One run. `stop` is a verb phrase, the same for two runs that end alike; `ram` has the blocks that were written.

    `at_ports` are the instructions that reached a port, each told by the address after it. `read_itself` is set when
    bytes of the routine, or just behind its table, were read that are not its data. `dma` has the
    blocks that had been written each time that DMA was started: it reads what is there then.
    """

    stop: str
    state: State
    ram: dict[int, bytes] = field(repr=False)
    events: tuple[PortEvent, ...]
    cycles: int
    clocks: int
    at_ports: frozenset[int]
    read_itself: bool
    dma: tuple[dict[int, bytes], ...] = field(default=(), repr=False)

    @property
    def returned(self) -> bool:
        """Whether it came back to its caller or reached its end."""
        return self.stop in (RETURNS, RETURNS_LONG, FALLS_OFF)


RETURNS = "returns"
RETURNS_LONG = "returns long"
FALLS_OFF = "falls off its end"
RETURNS_UNCALLED = "returns, though nothing has called it"
ENDLESS = "does not return within its budget"
BREAKPOINT = "stops at a breakpoint"
_SAID = {"budget": ENDLESS, "breakpoint": BREAKPOINT, "stp": "stops at stp", "wai": "waits at wai"}


@dataclass(frozen=True, order=True)
class Note:
    """Something noticed in execution at an offset of the code: immediates of another width, data executed."""

    offset: int
    message: str


@cache
def _surroundings(number: int) -> bytes:
    """What stands in the ROM around the routine: anything, the same for every routine."""
    return random.Random(65816 + number).randbytes(ROM_BYTES)


class Board(Cpu):
    """A chip on a board with one routine in its ROM."""

    def __init__(
        self,
        routine: Routine,
        fast: bool = False,
        entered_by: EnteredBy | None = None,
        readable_bytes: int | None = None,
    ) -> None:
        """`entered_by` None: as the routine itself wants it. `fast`: banks $80-$FF run from FastROM.

        Of instructions behind `readable_bytes`, those of the routine it is held against, data reads see what lies
        behind that one.
        """
        memory = lorom(b"", fast=fast, sram_bytes=SRAM_BYTES)
        super().__init__(memory, self._read_elsewhere, self._write_elsewhere)
        self.routine = routine
        self._entered_by = entered_by or routine.entered_by
        self._readable_bytes = len(routine.code) if readable_bytes is None else readable_bytes
        self.notes: set[Note] = set()
        self._has_data = any(routine.data)
        self._around = b""
        self._ram_at: dict[int, int] = {}
        self._mirrors: list[list[slice]] = []
        self._lay_out()
        self._ram: tuple[bytes, ...] = ()
        self._touched: set[int] = set()
        self._dirty: dict[int, bytearray] = {}
        self._ports = Ports(0)
        self._at_ports: set[int] = set()
        self._reads_itself = False
        self._is_fetching = False
        self._dma: list[dict[int, bytes]] = []
        self._return = (0, 0)
        self._entry_s = 0
        self.frame: tuple[tuple[int, int], ...] = ()
        """What the caller left above S: addresses in bank 0 and bytes."""

    def _lay_out(self) -> None:
        """Find RAM's mirrors; take everything off the board, for what is read comes when it is read."""
        memory = self.memory
        number_of = {id(block): number for number, block in enumerate(memory.ram_blocks())}
        for place, block in enumerate(memory.readable):
            if isinstance(block, bytearray):
                self._ram_at[place] = number_of[id(block)]
            memory.readable[place] = memory.writable[place] = None
        for number in range(RAM_BLOCKS):
            self._mirrors.append(_every_eighth([place for place, ram in self._ram_at.items() if ram == number]))

    # ---- running -----------------------------------------------------------------------------------------------

    def execute(self, entry: Entry, budget: int) -> Outcome:
        """Enter the routine and run until it ends or `budget` instructions are done."""
        self.enter(entry)
        stop = self.run(budget)
        return self.outcome(self.ended_as(stop))

    def ended_as(self, stop: str) -> str:
        """Why a run ended: one whose budget is used up may stand at its end."""
        if stop == "budget":
            try:
                self.arrive(self.pbr << 16 | self.pc)
            except Stopped as stopped:
                return str(stopped.args[0])
        return _SAID.get(stop, stop)

    def enter(self, entry: Entry) -> None:
        """Stand before the first instruction, called from elsewhere."""
        self._ports = Ports(entry.port_seed, entry.port_words)
        self._at_ports = set()
        self._reads_itself = False
        self._dma = []
        self._around = _surroundings(entry.port_seed % SURROUNDINGS)
        self._load_ram(entry.ram)
        state = entry.state._replace(pc=self.routine.org & 0xFFFF, pbr=self.routine.org >> 16)
        self.load(state)
        self._entry_s = state.s
        self._push_return(state, RETURN_FIRST + (entry.port_seed >> 2) % RETURN_PLACES)
        self.cycles = self.clocks = 0

    def outcome(self, stop: str) -> Outcome:
        """What the run since `enter` left behind."""
        return Outcome(
            stop=stop,
            state=self.state,
            ram={number: bytes(block) for number, block in self._dirty.items()},
            events=tuple(self._ports.log),
            cycles=self.cycles,
            clocks=self.clocks,
            at_ports=frozenset(self._at_ports),
            read_itself=self._reads_itself,
            dma=tuple(self._dma),
        )

    def executed(self, entry: Entry, budget: int) -> frozenset[int]:
        """The instructions that a run executes, each told by the address after it."""
        self.enter(entry)
        found: set[int] = set()
        with suppress(Stopped):
            for _ in range(budget):
                after = self.arrive(self.pbr << 16 | self.pc)[2]
                found.add(self.pbr << 16 | after)
                self.step()
        return frozenset(found)

    def _load_ram(self, blocks: tuple[bytes, ...]) -> None:
        """Take what the last run touched off the board; what this one touches comes when it does."""
        for number in self._touched:
            self._put(self.memory.readable, number, None)
            self._put(self.memory.writable, number, None)
        self._touched = set()
        self._dirty = {}
        self._ram = blocks

    def _put[Block](self, blocks: list[Block], number: int, block: Block) -> None:
        """Let a block of RAM stand at all its mirrors."""
        for mirrors in self._mirrors[number]:
            blocks[mirrors] = [block] * len(range(mirrors.start, mirrors.stop, mirrors.step))

    def _push_return(self, state: State, offset: int) -> None:
        """Lay what a caller, or an interrupt, would have left above S."""
        bank = 0x2A if state.pbr != 0x2A else 0x2B
        low, high, last = offset & 0xFF, offset >> 8, offset - 1
        frames = {"call": [last & 0xFF, last >> 8, bank], "interrupt": [state.p, low, high, bank], "falling in": []}
        self.frame = tuple((state.s + place & 0xFFFF, value) for place, value in enumerate(frames[self._entered_by], 1))
        for address, value in self.frame:
            self.write(address, value)
        self._return = (state.pbr << 16 | offset, bank << 16 | offset)

    # ---- fetching ----------------------------------------------------------------------------------------------

    def arrive(self, address: int) -> Fetched:
        """Look at an instruction of the routine; anywhere else the run ends."""
        if address in self._return:
            raise Stopped(RETURNS if address == self._return[0] else RETURNS_LONG)
        offset = self.routine.offset_of(address)
        if self.routine.ends_before(address):
            raise Stopped(FALLS_OFF)
        if not 0 <= offset < len(self.routine.code):
            if self._entered_by == "falling in" and self.s > self._entry_s:
                raise Stopped(RETURNS_UNCALLED)
            raise Stopped(f"leaves to ${address:06X}")
        if address in self.breakpoints:
            raise Stopped(BREAKPOINT)
        self._note(offset)
        return self.fetch_instruction(address)

    def fetch_instruction(self, address: int) -> Fetched:
        """As the chip does; fetching is no reading of data."""
        self._is_fetching = True
        fetched = super().fetch_instruction(address)
        self._is_fetching = False
        return fetched

    def fetch(self) -> int:
        """The last byte of an operand that is fetched late."""
        self._is_fetching = True
        value = super().fetch()
        self._is_fetching = False
        return value

    def _cannot_change(self, address: int) -> bool:
        return self.routine.offset_of(address) >= 0  # it lies in ROM

    def _note(self, offset: int) -> None:
        """Compare what was written with what is executed."""
        place = self.routine.place_at.get(offset)
        opcode = OPCODES[self.routine.code[offset]]
        if place is None:
            if self.routine.placed:
                self.notes.add(Note(offset, f"{opcode.name} is executed, a byte inside an instruction"))
        elif place.is_data:
            self.notes.add(Note(offset, "data is executed"))
        elif place.size != 1 + opcode.operand_bytes(self.m8, self.x8):
            register, bits = ("A", 8 if self.m8 else 16) if opcode.mode == "#m" else ("X/Y", 8 if self.x8 else 16)
            written = f"{place.size - 1} byte{'s' if place.size != 2 else ''}"
            self.notes.add(
                Note(offset, f"the immediate is written with {written} and executed with {register} {bits}-bit")
            )

    # ---- what is no plain memory -------------------------------------------------------------------------------

    def _read_elsewhere(self, address: int) -> int:
        number = self._ram_at.get(address >> BLOCK_BITS)
        if number is not None:
            block = self._ram[number]
            self._touched.add(number)
            self._put(self.memory.readable, number, block)
            return block[address & _OFFSET]
        if is_port(address):
            self._at_ports.add(self.pbr << 16 | self.pc)
            return self._ports.read(address & 0xFFFF, self.cycles)
        if not address & 0x8000:
            return address >> 8 & 0xFF  # open bus: what such an access leaves there, mostly
        offset = self.routine.offset_of(address)
        if 0 <= offset < len(self.routine.code):
            if self.routine.data[offset] or self._is_fetching or offset < self._readable_bytes:
                if not self.routine.data[offset] and not self._is_fetching:
                    self._reads_itself = True
                return self.routine.code[offset]
            return self._around[rom_offset(address)]
        if self._has_data and offset >= 0:
            # An index that leaves the routine's own table: in another routine the table lies elsewhere.
            self._reads_itself |= not self._is_fetching
        return self._around[rom_offset(address)]

    def _write_elsewhere(self, address: int, value: int) -> None:
        number = self._ram_at.get(address >> BLOCK_BITS)
        if number is not None:
            block = self._dirty[number] = bytearray(self._ram[number])
            self._touched.add(number)
            self._put(self.memory.readable, number, block)
            self._put(self.memory.writable, number, block)
            block[address & _OFFSET] = value
        elif is_port(address):
            self._at_ports.add(self.pbr << 16 | self.pc)
            self._ports.write(address & 0xFFFF, value, self.cycles)
            if address & 0xFFFF in (MDMAEN, HDMAEN) and value:
                self._dma.append({number: bytes(block) for number, block in self._dirty.items()})


def _every_eighth(places: list[int]) -> list[slice]:
    """Ascending places as slices: a mirror is the same part of the next bank, eight blocks on."""
    slices: list[slice] = []
    for place in places:
        if slices and slices[-1].stop == place:
            slices[-1] = slice(slices[-1].start, place + 8, 8)
        else:
            slices.append(slice(place, place + 8, 8))
    return slices
