"""Makes the regression vectors of the 65816 interpreter, one file for each row of the opcode matrix and mode.

From the repository's root:

    .venv/bin/python tests/golden/65816/make_vectors.py

The interpreter itself makes them. It did so once it agreed with 17,760 vectors from elsewhere: 15,240 made with an
independent core, which had agreed with 840,000 SingleStepTests cases, and 2,520 SingleStepTests cases. So these guard
against regressions; they are no independent evidence.

Half of the cases are drawn close to edges: pages, banks, the stack's and the direct page's ends, widths, digits. A byte
of memory is drawn when it is first read. Two runs write the same bytes.
"""

import json
import random
from contextlib import suppress
from pathlib import Path

from afs_mlx.snes.cpu.control import Stopped
from afs_mlx.snes.cpu.core import RecordedCpu
from afs_mlx.snes.cpu.memory import flat
from afs_mlx.snes.cpu.opcodes import OPCODES, Opcode
from afs_mlx.snes.cpu.state import DECIMAL, M8, X8, State

HERE = Path(__file__).parent
SEED = 65816
MODES = "ne"  # native, emulation
CASES = {"n": 16, "e": 6}  # native: each width of m and x four times, two of them close to edges
DECIMAL_CASES = {"n": 8, "e": 4}  # more for adc and sbc

EDGES = (0x0000, 0x0001, 0x007F, 0x0080, 0x00FF, 0x0100, 0x7FFF, 0x8000, 0x80FF, 0xFF00, 0xFFFE, 0xFFFF)
BYTE_EDGES = (0x00, 0x01, 0x40, 0x7F, 0x80, 0x81, 0xFE, 0xFF)
STACK_EDGES = (0x0100, 0x01FF, 0x0000, 0xFFFF, 0x0101, 0x01FE, 0x0001, 0xFFFE)
PC_EDGES = (0xFFFF, 0xFFFE, 0xFFFD, 0xFFFC, 0x0000, 0x80FD, 0x80FE, 0x80FF)
# The bit of P that a branch asks, and its value when the branch is taken.
BRANCHES = {
    "bpl": (0x80, 0), "bmi": (0x80, 1), "bvc": (0x40, 0), "bvs": (0x40, 1),
    "bcc": (0x01, 0), "bcs": (0x01, 1), "bne": (0x02, 0), "beq": (0x02, 1),
}  # fmt: skip
COUNTS = {"inx": 1, "iny": 1, "dex": -1, "dey": -1}
TURNS = {"inc": 0x7F, "dec": 0x81, "asl": 0x40, "rol": 0x40}  # the byte that becomes $80; for others it is $80 itself
LAST_PAGE = {12: 0, 14: -1}  # cases with D in $FF01-$FFFF, and how far from the bank's end the operand leads


class Draw:
    """What is random in a case. `edge` cases come close to where something wraps, `bcd` has valid digits only.

    `common` is a byte that all memory has: $FF makes pointers to the ends of pages and banks, and full counters.
    """

    def __init__(self, rng: random.Random, edge: bool = False, bcd: bool = False, common: int | None = None) -> None:
        self.rng = rng
        self.edge = edge
        self.bcd = bcd
        self.common = common

    def chance(self, probability: float) -> bool:
        """True as often as this."""
        return self.rng.random() < probability

    def number(self, bits: int) -> int:
        """Any number."""
        return self.rng.getrandbits(bits)

    def among(self, values: tuple[int, ...]) -> int:
        """One of these."""
        return values[int(self.rng.random() * len(values))]

    def byte(self) -> int:
        """A byte of memory."""
        if self.bcd:
            return self.digits(2)
        if self.common is not None:
            return self.common
        return self.among(BYTE_EDGES) if self.edge and self.chance(0.4) else self.number(8)

    def digits(self, count: int) -> int:
        """Binary coded decimal."""
        ends = self.edge and self.chance(0.4)
        digits = [self.among((0, 9)) if ends else self.among(tuple(range(10))) for _ in range(count)]
        return int("".join(str(digit) for digit in digits), 16)

    def word(self, edges: tuple[int, ...] = EDGES) -> int:
        """A register of 16 bits."""
        return self.among(edges) if self.edge and self.chance(0.7) else self.number(16)

    def bank(self) -> int:
        """A bank; edges are the first, the last, and those of WRAM."""
        return self.among((0x00, 0xFF, 0x7E, 0x7F)) if self.edge and self.chance(0.7) else self.number(8)


class DrawnCpu(RecordedCpu):
    """A chip in memory whose bytes are drawn when they are first read; `ram` keeps these."""

    def __init__(self) -> None:
        self.draw = Draw(random.Random(SEED))
        self.code: dict[int, int] = {}
        self.ram: dict[int, int] = {}
        self.known: set[int] = set()
        super().__init__(flat())

    def begin(self, draw: Draw, state: State, code: bytes) -> None:
        """Forget the memory; let `code` stand at the program counter."""
        self.draw = draw
        self.ram, self.known = {}, set()
        self.bus.clear()
        self.writes.clear()
        self.cycles = self.clocks = 0
        self.load(state)
        self.code = {state.pbr << 16 | state.pc + place & 0xFFFF: value for place, value in enumerate(code)}

    def read(self, address: int) -> int:
        if address not in self.known:
            value = self.code[address] if address in self.code else self.draw.byte()
            self.ram[address] = value
            self._put(address, value)
        return super().read(address)

    def write(self, address: int, value: int) -> None:
        self.known.add(address)
        super().write(address, value)

    def _put(self, address: int, value: int) -> None:
        self.known.add(address)
        block = self.memory.writable[address >> 13]
        assert block is not None
        block[address & 0x1FFF] = value


def make_file(row: int, mode: str) -> str:
    """The text of a file: the cases of sixteen opcodes, a case a line."""
    cpu = DrawnCpu()
    lines = [
        json.dumps(_case(cpu, opcode, mode, number), separators=(",", ":"))
        for opcode in OPCODES[16 * row : 16 * row + 16]
        for number in range(_cases(opcode, mode))
    ]
    return "[\n" + ",\n".join(lines) + "\n]\n"


def _cases(opcode: Opcode, mode: str) -> int:
    return CASES[mode] + DECIMAL_CASES[mode] * _in_decimal(opcode)


def _in_decimal(opcode: Opcode) -> bool:
    return opcode.name in ("adc", "sbc")


def _case(cpu: DrawnCpu, opcode: Opcode, mode: str, number: int) -> list[object]:
    rng = random.Random(f"{SEED} {opcode.code} {mode} {number}")
    extra = number >= CASES[mode]  # for adc and sbc: in decimal, half of them valid
    # The widths come in turn, each with and without edges: the edge cases are 1, 3, 4, 6, 9, 11, 12, 14.
    edge = bool((number ^ number >> 2) & 1)
    commons = {3: 0xFF, 4: 0xFF if mode == "n" else 0x00, 11: TURNS.get(opcode.name, 0x80)}
    common = None if extra else commons.get(number)
    draw = Draw(rng, edge, bcd=extra and number % 8 < 4, common=common)
    init = _registers(draw, opcode, mode, number)
    if extra:
        init = init._replace(p=init.p | DECIMAL)
    cpu.begin(draw, init, bytes([opcode.code, *_operand(draw, opcode, init, number)]))
    assert cpu.state == init, "the drawn state is not one the chip can be in"
    with suppress(Stopped):
        cpu.step()
    kinds = "".join(kind for kind, _ in cpu.bus)
    addresses = [address for kind, address in cpu.bus if kind != "-"]
    ram, writes = ([list(pair) for pair in pairs.items()] for pairs in (cpu.ram, dict(cpu.writes)))
    return [list(init), ram, list(cpu.state), writes, cpu.cycles, kinds, addresses]


def _registers(draw: Draw, opcode: Opcode, mode: str, number: int) -> State:
    p = draw.number(8)
    p = p & ~(M8 | X8) | (M8 | X8 if mode == "e" else (number & 3) << 4)
    if opcode.name in BRANCHES:
        bit, taken = BRANCHES[opcode.name]
        p = p | bit if taken ^ (number // 2 % 3 == 2) else p & ~bit  # taken two times in three
    index = 0xFF if p & X8 else 0xFFFF
    a, x, y = _numbers(draw, opcode, number, index)
    pc = PC_EDGES[number // 2 % len(PC_EDGES)] if draw.edge else draw.number(16)
    if opcode.mode == "r" and draw.edge:
        pc = pc & 0xFF00 | draw.among((0x00, 0x7D, 0x7E, 0x7F, 0xFC, 0xFD, 0xFE, 0xFF))
    s = _stack(draw, opcode, mode, number)
    d = _direct_page(draw, number)
    return State(pc, s, p, a, x, y, draw.bank(), d, draw.bank(), int(mode == "e"))


def _numbers(draw: Draw, opcode: Opcode, number: int, index: int) -> tuple[int, int, int]:
    """A, X and Y; `index` is the mask of the index registers."""
    a, x, y = draw.digits(4) if draw.bcd else draw.word(), draw.word() & index, draw.word() & index
    if opcode.mode == "xyc":
        a = {0: 0, 1: 1}.get(number % 3, a)  # the last byte, the last but one
        if number % 2:
            y = x + draw.among((0, 1, -1)) & index  # source and destination overlap
    elif opcode.name in ("cmp", "cpx", "cpy") and draw.common == 0xFF:
        a, x, y = 0xFFFF, index, index  # equal
    elif opcode.name in COUNTS and draw.edge:  # to zero, to the mask, to the sign
        x = y = draw.among((0, index, index ^ index >> 1)) - COUNTS[opcode.name] & index
    elif draw.common == 0x80:
        a = 0x8080
    return a, x, y


def _direct_page(draw: Draw, number: int) -> int:
    """D: half of the edge cases have an aligned one, many end beyond bank 0."""
    if not draw.edge:
        return draw.number(16)
    if number in LAST_PAGE:
        return 0xFF01 + draw.number(8) % 0xFF
    if draw.chance(0.5):
        return draw.among((0x0000, 0xFF00, draw.number(8) << 8))
    return draw.among((0xFF01 + draw.number(8) % 0xFF, 0x0001, draw.number(16)))


def _stack(draw: Draw, opcode: Opcode, mode: str, number: int) -> int:
    if mode == "e":  # both ends of page 1 for every opcode: pushes leave it below, pulls above
        ends = {1: 0x0100, 3: 0x01FF}
        return ends[number] if number in ends else 0x0100 | draw.word(STACK_EDGES) & 0xFF
    if ",s" in opcode.mode and draw.edge and draw.chance(0.5):
        return 0xFF00 | draw.number(8)
    return draw.word(STACK_EDGES)


def _operand(draw: Draw, opcode: Opcode, init: State, number: int) -> bytes:
    """The bytes behind the opcode, where it matters which; the others are drawn like all memory."""
    mode, index = opcode.mode, init.y if opcode.mode.endswith("y") else init.x
    near = LAST_PAGE.get(number, draw.among((-2, -1, 0, 1)))
    if mode == "xyc":
        bank = draw.bank()
        return bytes([bank, bank if draw.chance(0.5) else draw.bank()])
    if not draw.edge or (number not in LAST_PAGE and draw.chance(0.3)):
        return b""
    if mode in ("a,x", "a,y", "(a,x)"):  # the sum comes close to the end of a page or of the bank
        end = 0x10000 if draw.chance(0.5) else draw.number(8) << 8
        return (end - index + near & 0xFFFF).to_bytes(2, "little")
    if mode == "al,x":
        return (0x10000 * draw.bank() - index + near & 0xFFFFFF).to_bytes(3, "little")
    if mode in ("a", "(a)", "[a]"):
        return (near & 0xFFFF).to_bytes(2, "little")
    if mode == "al":
        return (draw.bank() << 16 | near & 0xFFFF).to_bytes(3, "little")
    if mode in ("d", "(d)", "[d]", "(d),y", "[d],y"):
        return bytes([near - init.d & 0xFF])
    if mode in ("d,x", "d,y", "(d,x)"):
        return bytes([near - init.d - index & 0xFF])
    if mode in ("d,s", "(d,s),y"):
        return bytes([near - init.s & 0xFF])
    return b""


def main() -> None:
    """Write all files beside this script."""
    folder = HERE / "vectors"
    folder.mkdir(exist_ok=True)
    for row in range(16):
        for mode in MODES:
            (folder / f"{row:x}.{mode}.json").write_text(make_file(row, mode), encoding="utf-8")


if __name__ == "__main__":
    main()
