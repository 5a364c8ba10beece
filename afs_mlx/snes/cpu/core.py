"""The chip: registers, bus, and the loop that fetches and executes. Every bus access and every idle cycle is performed,
so CPU cycles and master clocks need no table.

Clocks leave out DRAM refresh. Not modelled: interrupts, DMA, open bus; what is no memory goes to the hooks.
"""

from collections.abc import Callable, Iterable

from afs_mlx.snes.cpu.control import Stopped
from afs_mlx.snes.cpu.instructions import Execute, instructions_for
from afs_mlx.snes.cpu.memory import BLOCK_BITS, BLOCK_BYTES, IDLE_CLOCKS, JOYPAD_CLOCKS, MemoryMap
from afs_mlx.snes.cpu.state import CARRY, DECIMAL, IRQ_DISABLE, M8, NEGATIVE, OVERFLOW, X8, ZERO, State

type Fetched = tuple[Execute, int, int, int, int]
"""An instruction as fetched: what it does, its operand, the program counter behind it, its cycles and clocks."""

_OFFSET = BLOCK_BYTES - 1


def _open_bus(_address: int) -> int:
    return 0


def _nowhere(_address: int, _value: int) -> None:
    return None


class Cpu:
    """A 65816 on a bus. `a`, `x`, `y`, `s`, `d`, `pc` have 16 bits, `dbr` and `pbr` 8, flags are bools.

    `read_port(address)` and `write_port(address, value)` are called for every data access that meets no memory: ports,
    open bus, and writes to ROM. They may look at the chip's registers and counters.
    """

    a: int
    x: int
    y: int
    s: int
    d: int
    pc: int
    dbr: int
    pbr: int
    e: bool
    n: bool
    v: bool
    m8: bool
    x8: bool
    decimal: bool
    irq_disable: bool
    z: bool
    c: bool

    def __init__(
        self,
        memory: MemoryMap,
        read_port: Callable[[int], int] = _open_bus,
        write_port: Callable[[int, int], None] = _nowhere,
    ) -> None:
        self.memory = memory
        self._readable, self._writable, self._clocks_at = memory.readable, memory.writable, memory.clocks
        self.read_port = read_port
        self.write_port = write_port
        self.breakpoints: frozenset[int] = frozenset()
        self.fetched_by_mode: dict[int, dict[int, Fetched]] = {}
        self.cycles = 0
        self.clocks = 0
        self.load(State())

    # ---- registers ---------------------------------------------------------------------------------------------

    @property
    def p(self) -> int:
        """The status register as a byte."""
        return (
            NEGATIVE * self.n | OVERFLOW * self.v | M8 * self.m8 | X8 * self.x8
            | DECIMAL * self.decimal | IRQ_DISABLE * self.irq_disable | ZERO * self.z | CARRY * self.c
        )  # fmt: skip

    @p.setter
    def p(self, value: int) -> None:
        self.n = value & NEGATIVE != 0
        self.v = value & OVERFLOW != 0
        self.m8 = value & M8 != 0
        self.x8 = value & X8 != 0
        self.decimal = value & DECIMAL != 0
        self.irq_disable = value & IRQ_DISABLE != 0
        self.z = value & ZERO != 0
        self.c = value & CARRY != 0
        self.adopt_mode()

    def adopt_mode(self) -> None:
        """Let e, m and x take effect: emulation forces 8 bits and page 1, narrow index registers lose a byte."""
        if self.e:
            self.m8 = self.x8 = True
            self.s = 0x0100 | self.s & 0xFF
        if self.x8:
            self.x &= 0xFF
            self.y &= 0xFF
        mode = self.e << 2 | self.m8 << 1 | self.x8
        self.instructions = instructions_for(self.e, self.m8, self.x8)
        self.fetched = self.fetched_by_mode.setdefault(mode, {})

    def load(self, state: State) -> None:
        """Set all registers."""
        self.pc, self.s = state.pc, state.s
        self.a, self.x, self.y, self.dbr, self.d, self.pbr = state.a, state.x, state.y, state.dbr, state.d, state.pbr
        self.e = bool(state.e)
        self.p = state.p

    @property
    def state(self) -> State:
        """All registers."""
        return State(
            self.pc, self.s, self.p, self.a, self.x, self.y, self.dbr, self.d, self.pbr, int(self.e)
        )  # fmt: skip

    # ---- bus: each call is one cycle ---------------------------------------------------------------------------

    def read(self, address: int) -> int:
        """Read one byte."""
        block = address >> BLOCK_BITS
        self.cycles += 1
        bytes_here = self._readable[block]
        if bytes_here is None:
            self.clocks += JOYPAD_CLOCKS if address & 0x40FE00 == 0x4000 else self._clocks_at[block]
            return self.read_port(address)
        self.clocks += self._clocks_at[block]
        return bytes_here[address & _OFFSET]

    def write(self, address: int, value: int) -> None:
        """Write one byte."""
        block = address >> BLOCK_BITS
        self.cycles += 1
        bytes_here = self._writable[block]
        if bytes_here is None:
            self.clocks += JOYPAD_CLOCKS if address & 0x40FE00 == 0x4000 else self._clocks_at[block]
            self.write_port(address, value)
        else:
            self.clocks += self._clocks_at[block]
            bytes_here[address & _OFFSET] = value

    def idle(self) -> None:
        """An internal cycle."""
        self.cycles += 1
        self.clocks += IDLE_CLOCKS

    # ---- stack -------------------------------------------------------------------------------------------------
    # The 6502's instructions keep S in page 1 in emulation mode; the 65816's own leave it and come back at their end.

    def push(self, value: int) -> None:
        """Push a byte as the 6502's instructions do."""
        self.write(self.s, value)
        self.s = 0x0100 | self.s - 1 & 0xFF if self.e else self.s - 1 & 0xFFFF

    def pull(self) -> int:
        """Pull a byte as the 6502's instructions do."""
        self.s = 0x0100 | self.s + 1 & 0xFF if self.e else self.s + 1 & 0xFFFF
        return self.read(self.s)

    def push_new(self, value: int) -> None:
        """Push a byte as the 65816's own instructions do; `settle_stack` ends such an instruction."""
        self.write(self.s, value)
        self.s = self.s - 1 & 0xFFFF

    def pull_new(self) -> int:
        """Pull a byte as the 65816's own instructions do; `settle_stack` ends such an instruction."""
        self.s = self.s + 1 & 0xFFFF
        return self.read(self.s)

    def settle_stack(self) -> None:
        """Bring S back to page 1 in emulation mode."""
        if self.e:
            self.s = 0x0100 | self.s & 0xFF

    # ---- execution ---------------------------------------------------------------------------------------------

    def fetch(self) -> int:
        """Read the byte at the program counter, which stays in its bank."""
        value = self.read(self.pbr << 16 | self.pc)
        self.pc = self.pc + 1 & 0xFFFF
        return value

    def fetch_instruction(self, address: int) -> Fetched:
        """Look at the instruction at an address without performing its cycles; remember it where it cannot change."""
        cycles, clocks = self.cycles, self.clocks
        bank, pc = address & 0xFF0000, address & 0xFFFF
        execute, operand_bytes = self.instructions[self.read(address)]
        operand = 0
        for place in range(operand_bytes):
            operand |= self.read(bank | pc + 1 + place & 0xFFFF) << 8 * place
        fetched = (
            execute, operand, pc + 1 + operand_bytes & 0xFFFF, self.cycles - cycles, self.clocks - clocks,
        )  # fmt: skip
        self.cycles, self.clocks = cycles, clocks
        last = bank | pc + operand_bytes & 0xFFFF
        # A breakpoint is looked for where nothing is remembered.
        if self._cannot_change(address) and self._cannot_change(last) and address not in self.breakpoints:
            self.fetched[address] = fetched
        return fetched

    def _cannot_change(self, address: int) -> bool:
        return isinstance(self.memory.readable[address >> BLOCK_BITS], bytes)

    def arrive(self, address: int) -> Fetched:
        """What to execute at an address that is not remembered: its instruction, or a stop where a breakpoint is."""
        if address in self.breakpoints:
            return _stop_at_breakpoint, 0, address & 0xFFFF, 0, 0
        return self.fetch_instruction(address)

    def step(self) -> None:
        """Execute one instruction, also at a breakpoint. Raises Stopped at WAI and STP."""
        execute, operand, self.pc, cycles, clocks = self.fetch_instruction(self.pbr << 16 | self.pc)
        self.cycles += cycles
        self.clocks += clocks
        execute(self, operand)

    def run(self, budget: int) -> str:
        """Execute up to `budget` instructions and tell why it ended: "budget", "breakpoint", "stp" or "wai".

        At a breakpoint the instruction there is not executed.
        """
        try:
            for _ in range(budget):
                address = self.pbr << 16 | self.pc
                known = self.fetched.get(address)
                execute, operand, self.pc, cycles, clocks = known or self.arrive(address)
                self.cycles += cycles
                self.clocks += clocks
                execute(self, operand)
        except Stopped as stopped:
            reason: str = stopped.args[0]
            return reason
        return "budget"

    def stop_at(self, addresses: Iterable[int]) -> None:
        """Set the breakpoints, 24-bit addresses, in place of the ones before."""
        self.breakpoints = frozenset(addresses)
        self.fetched_by_mode.clear()
        self.adopt_mode()


def _stop_at_breakpoint(_cpu: Cpu, _operand: int) -> None:
    raise Stopped("breakpoint")


class RecordedCpu(Cpu):
    """A chip that keeps every cycle in order: `bus` holds (kind, address), kind `r`, `w` or `-` with address -1."""

    def __init__(self, memory: MemoryMap) -> None:
        self.bus: list[tuple[str, int]] = []
        self.writes: list[tuple[int, int]] = []
        super().__init__(memory)

    def read(self, address: int) -> int:
        self.bus.append(("r", address))
        return super().read(address)

    def write(self, address: int, value: int) -> None:
        self.bus.append(("w", address))
        self.writes.append((address, value))
        super().write(address, value)

    def idle(self) -> None:
        self.bus.append(("-", -1))
        super().idle()

    def _cannot_change(self, address: int) -> bool:
        return False  # a remembered instruction would perform no cycles
