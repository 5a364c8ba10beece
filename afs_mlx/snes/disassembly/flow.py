"""Follows a program from its first byte, with the register widths on every path. Runs nothing, makes no text.

Subroutines inside the code are followed once for each state they are called in, and hand the widths at their return
back to the call. Where paths meet with different stacks, what they have in common is kept.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from afs_mlx.snes.cpu.opcodes import OPCODES, Opcode
from afs_mlx.snes.disassembly.operands import target_of
from afs_mlx.snes.disassembly.widths import Stack, State, Widths, after, common_top
from afs_mlx.snes.grammar import lorom_address

# A program takes one to three for an instruction. Only bytes that are none come near this.
MAX_VISITS_PER_BYTE = 6
MIN_VISITS = 1000

_ENDS = frozenset({"rts", "rtl", "rti", "stp"})
_CALLS = {"jsr": "rts", "jsl": "rtl"}
_NO_RETURN = frozenset({"jmp", "jml", "bra", "brl"})
_M8, _M16, _M_UNKNOWN, _X8, _X16, _X_UNKNOWN = (1 << bit for bit in range(6))
_M, _X = _M8 | _M16, _X8 | _X16


class Instruction(NamedTuple):
    """An instruction that the flow reaches; `target` is the 24-bit address it names, if it names one."""

    opcode: Opcode
    operand: int
    size_bytes: int
    target: int | None


class _Key(NamedTuple):
    """A state at an offset; `call` counts the calls that lead there, 0 is the outermost routine."""

    offset: int
    widths: Widths
    carry: bool | None
    call: int


@dataclass
class _Call:
    """A subroutine in one entry state: who waits for its return, and the widths it returns with."""

    offset: int
    entry: Widths
    back: str  # the instruction that returns
    sites: dict[tuple[int, Stack, int], None] = field(default_factory=dict)
    exits: dict[Widths, None] = field(default_factory=dict)


class Flow:
    """The instructions reached from offset 0, by offset, and what could not be told for certain.

    `problems` has at most one message for an offset and a kind. Instructions do not overlap: of two, the first stays.
    """

    def __init__(self, code: bytes, org: int, entry: Widths) -> None:
        self.code = code
        self.org = org
        self.instructions: dict[int, Instruction] = {}
        self.cut_off: dict[int, Opcode] = {}
        self.problems: dict[tuple[int, str], str] = {}
        self._holder = [-1] * len(code)  # offset of the instruction that a byte belongs to
        self._seen = bytearray(len(code))  # _M8 … _X_UNKNOWN
        self._stacks: dict[_Key, Stack] = {}
        self._certain: list[_Key] = []
        self._guessed: list[_Key] = []
        self._calls = [_Call(0, entry, "")]
        self._call_numbers: dict[tuple[int, Widths, str], int] = {}
        self._unreturned: list[_Call] = []
        self._visits_left = MAX_VISITS_PER_BYTE * len(code) + MIN_VISITS
        self._arrive(_Key(0, entry, None, 0), ())
        self._follow()
        self._report_conflicts()

    def inside(self, address: int) -> int | None:
        """The offset of a 24-bit address, up to and with the end of the code; a LoROM mirror counts as inside."""
        other_bank = (address ^ self.org) & 0xFF0000
        if other_bank and not (other_bank == 0x800000 and lorom_address(address) and lorom_address(self.org)):
            return None
        offset = (address & 0xFFFF) - (self.org & 0xFFFF)
        return offset if 0 <= offset <= len(self.code) else None

    def holder(self, offset: int) -> int | None:
        """The offset of the instruction that this byte belongs to."""
        return self._holder[offset] if self._holder[offset] >= 0 else None

    def widths(self, offset: int) -> tuple[bool | None, bool | None]:
        """Whether m and x are 8 bits here on every path; None where that differs or is not known."""
        seen = self._seen[offset]
        return (
            {_M8: True, _M16: False}.get(seen & (_M | _M_UNKNOWN)),
            {_X8: True, _X16: False}.get(seen & (_X | _X_UNKNOWN)),
        )

    def _follow(self) -> None:
        self._drain()
        # The innermost first: what is taken to return may let the outer ones return.
        while self._unreturned:
            call = self._unreturned.pop()
            if not call.exits:
                self._problem(
                    call.offset, "return", "no return was found from here; widths after a call are taken as unchanged"
                )
                self._return(call, call.entry)
                self._drain()

    def _drain(self) -> None:
        while keys := self._certain or self._guessed:
            if not self._visits_left:
                self._problem(keys[-1].offset, "limit", "too many ways through this code; not all were followed")
                self._certain.clear()
                self._guessed.clear()
                self._unreturned.clear()
                return
            self._visits_left -= 1
            self._visit(keys.pop())

    def _arrive(self, key: _Key, stack: Stack) -> None:
        if key.offset >= len(self.code):
            return
        known = self._stacks.get(key)
        if known is not None:
            stack = common_top(known, stack)
            if stack == known:
                return
        self._stacks[key] = stack
        # What rests on a guess comes last, so that it takes no bytes from what is certain.
        (self._certain if key.widths.m_known and key.widths.x_known else self._guessed).append(key)

    def _visit(self, key: _Key) -> None:
        offset, widths, carry, number = key
        opcode = OPCODES[self.code[offset]]
        size_bytes = 1 + opcode.operand_bytes(widths.m8, widths.x8)
        operand = int.from_bytes(self.code[offset + 1 : offset + size_bytes], "little")
        target = target_of(opcode, operand, self.org + offset, size_bytes)
        self._seen[offset] |= _seen_bits(widths)
        if not self._place(offset, Instruction(opcode, operand, size_bytes, target)):
            return
        state = after(opcode, operand, State(widths, carry, self._stacks[key]))
        self._report_unknown(offset, opcode, state.widths, carry)
        following = offset + size_bytes
        if opcode.name in _ENDS:
            # With something left on the stack it jumps there.
            if opcode.name == self._calls[number].back and not state.stack:
                self._return(self._calls[number], widths)
        elif opcode.name in _CALLS:
            self._call(key, opcode, target, following)
        else:
            if target is not None and opcode.name != "per":
                self._jump(key, opcode, target, state)
            if opcode.name not in _NO_RETURN:
                self._arrive(_Key(following, state.widths, state.carry, number), state.stack)

    def _place(self, offset: int, instruction: Instruction) -> bool:
        """Whether to go on behind it. Not when the same bytes were read with another length."""
        if there := self.instructions.get(offset):
            return there.size_bytes == instruction.size_bytes
        end = offset + instruction.size_bytes
        name = instruction.opcode.name
        if end > len(self.code):
            self.cut_off[offset] = instruction.opcode
            self._problem(offset, "cut", f"{name} is cut off by the end of the code")
            return False
        taken = next((holder for holder in self._holder[offset:end] if holder >= 0), None)
        if taken is None:
            self.instructions[offset] = instruction
            self._holder[offset:end] = [offset] * instruction.size_bytes
        elif taken < offset:
            self._problem(offset, "inside", f"reached inside the instruction at {self._address(taken)}, as {name}")
        else:
            self._problem(offset, "overlap", f"{name} here runs into the instruction at {self._address(taken)}")
        return True

    def _jump(self, key: _Key, opcode: Opcode, target: int, state: State) -> None:
        to = self.inside(target)
        if to is None:
            self._problem(key.offset, "outside", f"{opcode.name} leads out of the code, to ${target:06x}")
        else:
            self._arrive(_Key(to, state.widths, state.carry, key.call), state.stack)

    def _call(self, key: _Key, opcode: Opcode, target: int | None, following: int) -> None:
        offset, widths, _, number = key
        stack = self._stacks[key]
        to = None if target is None else self.inside(target)
        if to is None or to == len(self.code):
            where = "through a pointer" if target is None else f"${target:06x}, outside the code"
            self._problem(offset, "outside", f"{opcode.name} calls {where}; widths are taken as unchanged by it")
            self._arrive(_Key(following, widths, None, number), stack)
            return
        name = (to, widths, _CALLS[opcode.name])
        if name not in self._call_numbers:
            self._call_numbers[name] = len(self._calls)
            self._calls.append(_Call(*name))
            self._unreturned.append(self._calls[-1])
        called = self._call_numbers[name]
        self._calls[called].sites[following, stack, number] = None
        self._arrive(_Key(to, widths, None, called), ())
        for left in self._calls[called].exits:
            self._arrive(_Key(following, left, None, number), stack)

    def _return(self, call: _Call, widths: Widths) -> None:
        if widths not in call.exits:
            call.exits[widths] = None
            for following, stack, number in call.sites:
                self._arrive(_Key(following, widths, None, number), stack)

    def _report_unknown(self, offset: int, opcode: Opcode, widths: Widths, carry: bool | None) -> None:
        if opcode.name == "xce" and carry is None:
            self._problem(offset, "xce", "the carry before xce is not known, so neither is the mode behind it")
        elif opcode.name == "plp" and not (widths.m_known and widths.x_known):
            now = f"m{8 if widths.m8 else 16} x{8 if widths.x8 else 16}"
            self._problem(offset, "plp", f"the widths after plp are not known; read on with {now}")

    def _report_conflicts(self) -> None:
        """One problem where different widths meet, not one for each instruction behind; immediates always."""
        before = end = 0
        for offset in sorted(self.instructions):
            mode, size_bytes = self.instructions[offset].opcode.mode, self.instructions[offset].size_bytes
            seen = self._seen[offset]
            both = (_M if seen & _M == _M else 0) | (_X if seen & _X == _X else 0)
            read = both & {"#m": _M, "#x": _X}.get(mode, 0)
            if new := both & ~(before if offset == end else 0) | read:
                names = " and ".join(name for name, bits in (("A", _M), ("X, Y", _X)) if new & bits)
                as_read = f"; its immediate is read as {8 * (size_bytes - 1)} bits" if read else ""
                self._problem(offset, "widths", f"reached with {names} 8 and 16 bits wide{as_read}")
            before, end = both, offset + size_bytes

    def _problem(self, offset: int, kind: str, message: str) -> None:
        self.problems.setdefault((offset, kind), message)

    def _address(self, offset: int) -> str:
        return f"${self.org + offset:06x}"


def _seen_bits(widths: Widths) -> int:
    m = (_M8 if widths.m8 else _M16) if widths.m_known else _M_UNKNOWN
    return m | ((_X8 if widths.x8 else _X16) if widths.x_known else _X_UNKNOWN)
