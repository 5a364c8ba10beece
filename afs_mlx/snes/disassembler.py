"""Bytes to 65816 text that the grammar accepts and that assembles to the same bytes again. Runs nothing.

What the flow does not reach is data. What the grammar cannot express (a branch to a place that can have no label) is
`db`, with the instruction as its comment.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from afs_mlx.core.errors import UsageError
from afs_mlx.snes.disassembly.flow import Flow, Instruction
from afs_mlx.snes.disassembly.operands import data_address, text_of
from afs_mlx.snes.disassembly.widths import Widths

MAX_CODE_BYTES = 0x10000
DATA_BYTES_PER_LINE = 16
_LABEL_COLUMN = 29  # of render(); the text stands two further in


@dataclass(frozen=True)
class Line:
    """One instruction or one row of data at a 24-bit address; the last line may be a label with no bytes.

    `m8` and `x8` are None for data, and where a width is not known or is not the same on every path.
    """

    address: int
    code: bytes
    label: str
    text: str
    comment: str
    m8: bool | None
    x8: bool | None

    def source(self) -> str:
        """The instruction and its comment, without the label."""
        return f"{self.text:<23} ; {self.comment}" if self.comment else self.text


@dataclass(frozen=True, order=True)
class Problem:
    """Something at a 24-bit address that a reader must know before trusting the listing."""

    address: int
    message: str

    def __str__(self) -> str:
        return f"${self.address:06x}: {self.message}"


@dataclass(frozen=True)
class Listing:
    """The lines cover the code without gaps, in order of address; so do the problems."""

    lines: tuple[Line, ...]
    problems: tuple[Problem, ...]

    def text(self) -> str:
        """What `asar.assemble(text, org)` takes, as far as its limits of 2,000 lines and 64 KiB of text go."""
        rows = []
        for line in self.lines:
            if line.label:
                rows.append(f"{line.label}:")
            if line.text:
                rows.append(f"  {line.source()}")
        return "\n".join(rows)

    def render(self) -> str:
        """For a person: address, bytes, widths, text; then the problems. Rows of data show their bytes once."""
        rows = []
        for line in self.lines:
            if line.label:
                rows.append(f"{'':{_LABEL_COLUMN}}{line.label}:")
            if line.text:
                shown = line.code.hex(" ") if len(line.code) <= 4 else ""
                rows.append(f"{line.address:06x}  {shown:11}  {_widths(line):6}    {line.source()}")
        return "\n".join([*rows, *(f"; {problem}" for problem in self.problems)])


def disassemble(code: bytes, org: int = 0x8000, m8: bool = True, x8: bool = True, emulation: bool = False) -> Listing:
    """Disassemble a program entered at its first byte; `org` is a 24-bit address.

    In emulation mode m and x are 8 bits whatever is given. A subroutine outside the code, and the handler of BRK and
    COP, is taken to return and to leave the widths as they are. That a program runs on past its end is no problem: it
    may be a part of one. Raises UsageError when the code does not lie in one bank.
    """
    room = MAX_CODE_BYTES - (org & 0xFFFF)
    if not 0 <= org <= 0xFFFFFF:
        raise UsageError(f"{org:#x} is not an address", "org", "take one of $000000-$FFFFFF")
    if len(code) > room:
        raise UsageError(
            f"{len(code):,} bytes at ${org:06X} leave the bank", "org", f"give at most {room:,} bytes, or a lower org"
        )
    return _Writer(Flow(code, org, Widths(m8, x8, emulation=emulation).settled())).listing()


class _Writer:
    """Turns a flow into lines."""

    def __init__(self, flow: Flow) -> None:
        from afs_mlx.snes.registers.table import name_of

        self._flow = flow
        self._name_of = name_of
        targets = (self._label_offset(instruction) for instruction in flow.instructions.values())
        self._labels = {offset for offset in targets if offset is not None}

    def listing(self) -> Listing:
        org = self._flow.org
        problems = sorted(Problem(org + offset, message) for (offset, _), message in self._flow.problems.items())
        return Listing(tuple(self._lines()), tuple(problems))

    def _lines(self) -> Iterator[Line]:
        offset, end = 0, len(self._flow.code)
        while offset < end:
            line = self._instruction(offset) if offset in self._flow.instructions else self._data(offset)
            yield line
            offset += len(line.code)
        if end in self._labels:
            yield Line(self._flow.org + end, b"", self._label(end), "", "", None, None)

    def _instruction(self, offset: int) -> Line:
        instruction = self._flow.instructions[offset]
        opcode, operand, size_bytes, target = instruction
        code = self._flow.code[offset : offset + size_bytes]
        to = self._label_offset(instruction)
        place = self._label(to) if to is not None else None
        comment = ""
        if target is None:
            text = text_of(opcode, operand, size_bytes)
            address = data_address(opcode, operand)
            comment = (address is not None and self._name_of(address)) or ""
        elif place is None and opcode.mode in ("r", "rl"):
            text, comment = _db(code), text_of(opcode, operand, size_bytes, f"${target & 0xFFFF:04x}")
        else:
            text = text_of(opcode, operand, size_bytes, place)
        return Line(self._flow.org + offset, code, self._label(offset), text, comment, *self._flow.widths(offset))

    def _data(self, offset: int) -> Line:
        end = offset + 1
        while end < min(len(self._flow.code), offset + DATA_BYTES_PER_LINE) and not self._starts_line(end):
            end += 1
        cut = self._flow.cut_off.get(offset)
        comment = f"{cut.name}, cut off" if cut else ""
        code = self._flow.code[offset:end]
        return Line(self._flow.org + offset, code, self._label(offset), _db(code), comment, None, None)

    def _starts_line(self, offset: int) -> bool:
        return offset in self._flow.instructions or offset in self._labels or offset in self._flow.cut_off

    def _label(self, offset: int) -> str:
        return f"label_{(self._flow.org + offset) & 0xFFFF:04x}" if offset in self._labels else ""

    def _label_offset(self, instruction: Instruction) -> int | None:
        """Where the label of an instruction's target stands; None when it names no place that can have one."""
        target = instruction.target
        # A mirror is the same byte under another address: the label would assemble to the wrong bank.
        if target is None or (target ^ self._flow.org) & 0xFF0000:
            return None
        offset = self._flow.inside(target)
        if offset is None or offset == len(self._flow.code):
            return offset
        return offset if self._flow.holder(offset) in (None, offset) else None


def _db(code: bytes) -> str:
    return "db " + ",".join(f"${byte:02x}" for byte in code)


def _widths(line: Line) -> str:
    if line.text.startswith("db ") and line.m8 is None and line.x8 is None:
        return ""
    return "".join(
        f"{name}{'?' if narrow is None else 8 if narrow else 16}" for name, narrow in (("m", line.m8), ("x", line.x8))
    )
