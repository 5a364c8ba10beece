"""The whitelist grammar for untrusted 65816 text, and its canonical form. What it does not know never reaches Asar.

Asar has no sandbox: incbin and incsrc read any path, `!x = inc` with `!{x}bin` walks around a deny list, macros and
loops burn time. So a line here is labels, then one known instruction or db/dw/dl/dd with numbers and labels; the
canonical form is built anew from the parts understood. It also refuses what Asar takes in silence and means otherwise
(numbers it cuts off, `rep $30`, `lda ($12),x`, a number as a branch target). Knows no opcode bytes and no
addresses of labels.
"""

import re
from dataclasses import dataclass

from afs_mlx.core.errors import problems as problems_error
from afs_mlx.snes.expression import NAME, Expression, RefusedError, free_name
from afs_mlx.snes.mnemonics import (
    BRANCHES,
    DATA_BYTES,
    DIRECTIVES,
    HINTS,
    ONE_BYTE_IMMEDIATE,
    SHAPES,
    SIGN_HINTS,
    SUFFIX_BYTES,
    WIDTH_NOTES,
    operand_bytes,
)

MAX_TEXT_CHARS = 64 * 1024
MAX_LINES = 2000
MAX_LINE_CHARS = 1000

_GLOBAL_LABEL = re.compile(rf"({NAME}):")
_LOCAL_LABEL = re.compile(rf"(\.{{1,3}}{NAME}):?")
_ANONYMOUS = re.compile(r"(\+{1,8}|-{1,8})")
_ANONYMOUS_LABEL = re.compile(rf"{_ANONYMOUS.pattern}:?")
_E = r"([^#()\[\],]+)"
# In this order: the first that matches the whole operand is its shape.
_SHAPE_PATTERNS = {
    shape: re.compile("".join(_E if sign == "e" else re.escape(sign) for sign in shape))
    for shape in "a #e (e,s),y (e,x) (e),y (e),x (e) [e],y [e] e,x e,y e,s e,e e".split()  # noqa: SIM905
}
_BAD_SIGN = re.compile(r"[^A-Za-z0-9_ \t$%#()\[\],.:+\-*/&|^~<>=]")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


@dataclass(frozen=True, order=True)
class Problem:
    """One thing wrong with an assembly text; `line` is the 1-based line of the text as it was given."""

    line: int
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}"


@dataclass(frozen=True)
class Parsed:
    """A checked text: its canonical lines, one per line given, the address of its own `org`, and what is wrong."""

    lines: list[str]
    org: int | None
    problems: list[Problem]


def check(text: str) -> list[Problem]:
    """Everything in the text that lies outside the grammar, by line; empty when it may be handed to Asar."""
    return parse(text).problems


def clean(text: str) -> str:
    """The canonical text: no comments, single spaces, as many lines as given. Raises AfsError if any line is bad."""
    parsed = parse(text)
    if parsed.problems:
        raise problems_error([str(problem) for problem in parsed.problems], "this assembly text is not accepted")
    return "\n".join(parsed.lines)


def parse(text: str) -> Parsed:
    """Check a text and put it into canonical form; never raises. Lines that have a problem come out empty."""
    if len(text) > MAX_TEXT_CHARS:
        last = text.count("\n", 0, MAX_TEXT_CHARS) + 1
        return Parsed([], None, [Problem(last, f"the text is longer than {MAX_TEXT_CHARS // 1024} KiB")])
    given = text.split("\n")
    if len(given) > MAX_LINES + 1 or (len(given) == MAX_LINES + 1 and given[-1]):
        return Parsed([], None, [Problem(MAX_LINES + 1, f"the text has more than {MAX_LINES:,} lines")])
    reader = _Reader()
    lines: list[str] = []
    found: list[Problem] = []
    for number, line in enumerate(given, start=1):
        try:
            lines.append(reader.line(line.removesuffix("\r")))
        except RefusedError as refused:
            lines.append("")
            found.append(Problem(number, str(refused)))
    if not found and not reader.has_code:
        found.append(Problem(1, "there is no instruction and no data"))
    return Parsed(lines, reader.org, found)


@dataclass
class _Reader:
    """Reads line by line; remembers what a later line depends on."""

    org: int | None = None
    has_code: bool = False
    has_label: bool = False
    has_parent: bool = False  # a label that `.name` can belong to

    def line(self, line: str) -> str:
        """The canonical form of one line."""
        if _CONTROL.search(line):
            raise RefusedError("control characters are not accepted")
        # Asar acts on `;@xkas`: comments never reach it. Being dropped, they may hold any printable text.
        code = line.partition(";")[0].strip(" \t")
        if len(code) > MAX_LINE_CHARS:
            raise RefusedError(f"the line is longer than {MAX_LINE_CHARS:,} characters")
        if bad := _BAD_SIGN.search(code):
            hint = SIGN_HINTS.get(bad[0], "this sign is not accepted" if bad[0].isascii() else "only ASCII is accepted")
            raise RefusedError(f"{bad[0]!r}: {hint}")
        if "//" in code:
            raise RefusedError("'//': a comment starts with ;")
        if not code:
            return ""
        parts = [self._part(part) for part in re.split(r"[ \t]+:(?:[ \t]+|$)", code)]
        return " : ".join(part for part in parts if part)

    def _part(self, part: str) -> str:
        """Labels, then one command or none."""
        words: list[str] = []
        while part:
            word, _, rest = part.replace("\t", " ").partition(" ")
            rest = rest.strip(" ")
            label = self._label(word, rest)
            if label is None:
                break
            words.append(label)
            part = rest
        else:
            if not words:
                raise RefusedError("nothing stands on one side of ':'")
        if part:
            words.append(self._command(part.replace("\t", " ")))
        return " ".join(words)

    def _label(self, word: str, rest: str) -> str | None:
        """The label in canonical form, None when the word is none."""
        if found := _GLOBAL_LABEL.fullmatch(word):
            free_name(found[1])
            self.has_parent = True
        elif found := _LOCAL_LABEL.fullmatch(word):
            if word.lower() in WIDTH_NOTES:
                raise RefusedError(f"{word}: Asar sizes an immediate by its digits, or by .b and .w")
            if rest and not word.endswith(":") and not _starts_command(rest):
                raise RefusedError(f"{word}: {HINTS.get(word.lower(), 'this is a directive of another assembler')}")
            if not self.has_parent:
                raise RefusedError(f"{found[1]} has no parent: put a label like main: before it")
        elif found := _ANONYMOUS_LABEL.fullmatch(word):
            self.has_label = True
            return found[1]
        else:
            return None
        self.has_label = True
        return f"{found[1]}:"

    def _command(self, command: str) -> str:
        if re.match(r"\S+:( |$)", command):
            raise RefusedError(f"{command.split()[0]!r} is not a label: letters, digits and _, the first no digit")
        if ":" in command:
            raise RefusedError(f"{command[:40]!r}: a colon needs a space after it, and one before it between commands")
        word, _, rest = command.partition(" ")
        rest = rest.strip(" ")
        if rest.startswith("="):
            return self._assignment(word, rest[1:])
        if rest[:4].lower() == "equ ":
            raise RefusedError("equ: write name = value")
        name, dot, suffix = word.lower().partition(".")
        operand = re.sub(", +", ",", rest)
        if " " in operand:
            raise RefusedError(f"{rest!r}: no space is accepted here, except after a comma")
        if name in SHAPES:
            self.has_code = True
            return self._instruction(name, suffix if dot else None, operand)
        if word.lower() in DATA_BYTES:
            self.has_code = True
            return self._data(name, operand)
        if word.lower() == "org":
            return self._org(operand)
        if (word.lower(), operand) in (("lorom", ""), ("arch", "65816")):
            return ""  # what is assumed anyway
        raise RefusedError(_unknown(word))

    def _assignment(self, name: str, value: str) -> str:
        if not re.fullmatch(NAME, name):
            raise RefusedError(f"{name!r} is not a name")
        free_name(name)
        if name.lower() in DIRECTIVES:
            raise RefusedError(f"{name!r} is not a name for a value; Asar has a directive of that name")
        return f"{name} = {self._expression(value.strip(' ')).text}"

    def _org(self, operand: str) -> str:
        if not re.fullmatch(r"\$([0-9A-Fa-f]{4}|[0-9A-Fa-f]{6})", operand):
            raise RefusedError("org takes one address of four or six hexadecimal digits, like $008000")
        if self.org is not None or self.has_code or self.has_label:
            raise RefusedError("org is accepted once, before the first label, instruction and data")
        address = int(operand[1:], 16)
        if not lorom_address(address):
            raise RefusedError(f"{operand} is not LoROM: banks $00-$7D and $80-$FF, addresses $8000-$FFFF")
        self.org = address
        return f"org ${address:06X}"

    def _data(self, name: str, operand: str) -> str:
        values = [self._expression(value) for value in operand.split(",")]
        for value in values:
            value.must_fit(DATA_BYTES[name], by_digits=False)
        return f"{name} " + ",".join(value.text for value in values)

    def _instruction(self, name: str, suffix: str | None, operand: str) -> str:
        if suffix is not None and suffix not in SUFFIX_BYTES:
            raise RefusedError(f"{name}.{suffix}: the sizes are .b, .w and .l")
        shape, texts = _shape_of(operand)
        if shape not in SHAPES[name]:
            raise RefusedError(_wrong_shape(name, shape, operand))
        if shape == "e" and _ANONYMOUS.fullmatch(operand):
            return _spelt(name, suffix, operand)
        values = [self._expression(text) for text in texts]
        if name in BRANCHES and not values[0].has_label:
            raise RefusedError(f"{name} takes a label; Asar takes a number as the raw distance, not as an address")
        if suffix and (shape in ("-", "a", "e,e") or (suffix == "l" and shape == "#e")):
            raise RefusedError(f"{name}.{suffix}: there is no such size here")
        if suffix == "l" and name in ("jmp", "jsr"):
            raise RefusedError(f"{name}.l: write {'jml' if name == 'jmp' else 'jsl'}")
        for value in values:
            value.must_fit(operand_bytes(name, shape, suffix), by_digits=suffix is None)
        # Every sign of the operand has been matched by its shape or by an expression.
        return _spelt(name, suffix, operand)

    def _expression(self, text: str) -> Expression:
        return Expression.read(text, self.has_parent)


def lorom_address(address: int) -> bool:
    """Whether a 24-bit CPU address lies in LoROM."""
    return 0 <= address <= 0xFFFFFF and bool(address & 0x8000) and (address >> 16) not in (0x7E, 0x7F)


def lorom_offset(address: int) -> int:
    """Where in a LoROM image a CPU address lies."""
    return (address & 0x7F0000) >> 1 | address & 0x7FFF


def _spelt(name: str, suffix: str | None, operand: str) -> str:
    return f"{name}.{suffix} {operand}" if suffix else f"{name} {operand}".rstrip()


def _shape_of(operand: str) -> tuple[str, tuple[str, ...]]:
    """The operand's shape and the expressions in it."""
    if not operand:
        return "-", ()
    for shape, pattern in _SHAPE_PATTERNS.items():
        if found := pattern.fullmatch(operand.lower()):
            return shape, tuple(operand[slice(*found.span(group))] for group in range(1, pattern.groups + 1))
    raise RefusedError(f"{operand!r} is not an operand of the 65816")


def _wrong_shape(name: str, shape: str, operand: str) -> str:
    if name == "rep" and shape == "e":
        return f"rep {operand} repeats the next command; write rep #{operand}"
    if shape == "e" and name in ONE_BYTE_IMMEDIATE:
        return f"{name} {operand}: write {name} #{operand}"
    if shape == "#e" and (SHAPES[name] == {"e"} or name in ("jmp", "jml", "jsr")):
        return f"{name} {operand}: write {name} {operand[1:]}"
    if shape == "#e" and "-" in SHAPES[name]:
        return f"{name} {operand}: Asar would repeat {name}; write it out"
    if shape == "-":
        return f"{name} needs an operand"
    return f"{name} takes no operand" if SHAPES[name] == {"-"} else f"{name} has no operand of the form {operand}"


def _starts_command(text: str) -> bool:
    word = text.split()[0]
    return word[0] in ".:+-" or word[-1] == ":" or word.lower().partition(".")[0] in SHAPES.keys() | DATA_BYTES.keys()


def _unknown(word: str) -> str:
    if hint := HINTS.get(word.lower()) or HINTS.get(word.lower().partition(".")[0]):
        return f"{word}: {hint}"
    if word.startswith("%"):
        return f"{word!r}: macros are not accepted; % only starts a binary number"
    if re.fullmatch(NAME, word):
        return f"{word!r} is no instruction; a label ends with a colon"
    return f"{word!r} is not understood"
