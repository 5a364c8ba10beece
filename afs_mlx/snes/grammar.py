"""The whitelist grammar for untrusted 65816 text, and its canonical form. What it does not know never reaches Asar.

Asar has no sandbox: incbin and incsrc read any path, `!x = inc` with `!{x}bin` walks around a deny list, macros and
loops burn time. So a line here is labels, then one known instruction or db/dw/dl/dd with numbers and labels; the
canonical form is built anew from the parts understood. It also refuses what Asar takes in silence and means otherwise
(numbers it cuts off, `rep $30`, `lda ($12),x`, a number as a branch target). Labels are not evaluated: one that does
not fit its operand is not seen.
"""

import re
from dataclasses import dataclass

from afs_mlx.core.errors import problems as problems_error

MAX_TEXT_CHARS = 64 * 1024
MAX_LINES = 2000
MAX_LINE_CHARS = 1000

# --- What there is ------------------------------------------------------------------------------------------------


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


IMPLIED = _words(
    "clc cld cli clv dex dey inx iny nop pha phb phd phk php phx phy pla plb pld plp plx ply rti rtl rts sec sed sei "
    "stp tax tay tcd tcs tdc tsc tsx txa txs txy tya tyx wai xba xce"
)
BRANCHES = _words("bcc bcs beq bmi bne bpl bra brl bvc bvs per")
_STORE = "e e,x e,y e,s (e) (e,x) (e),y (e,s),y [e] [e],y"
_GROUPS = {
    " ".join(IMPLIED): "-",
    " ".join(BRANCHES): "e",
    "adc and cmp eor lda ora sbc": f"#e {_STORE}",
    "sta": _STORE,
    "asl dec inc lsr rol ror": "- a e e,x",
    "bit": "#e e e,x",
    "brk wdm": "- #e",
    "cop rep sep": "#e",
    "cpx cpy": "#e e",
    "jml": "e [e]",
    "jmp": "e (e) (e,x) [e]",
    "jsl pea trb tsb": "e",
    "jsr": "e (e,x)",
    "ldx": "#e e e,y",
    "ldy": "#e e e,x",
    "mvn mvp": "e,e",
    "pei": "(e)",
    "stx": "e e,y",
    "sty stz": "e e,x",
}
# Mnemonic to its operand shapes: `e` is an expression, `-` no operand, the rest stands for itself.
SHAPES = {name: _words(shapes) for names, shapes in _GROUPS.items() for name in names.split()}
DATA_BYTES = {"db": 1, "dw": 2, "dl": 3, "dd": 4}
_SUFFIX_BYTES = {"b": 1, "w": 2, "l": 3}
_LONG = _words("adc and cmp eor lda ora sbc sta jml jsl")
_ONE_BYTE_IMMEDIATE = _words("brk cop rep sep wdm")

# No label has the name of an instruction or register, or of what reads files.
_RESERVED = _words("a x y s incbin incsrc incdir include") | SHAPES.keys() | DATA_BYTES.keys()
# Fine before a colon (`table:`, `reset:`), but `table = 3` might be a directive with an operand.
_DIRECTIVES = _words(
    "org base arch lorom hirom exlorom exhirom sa1rom fullsa1rom sfxrom norom header pushpc pullpc pushbase pullbase "
    "pushns pullns namespace includeonce includefrom fill fillbyte fillword filllong filldword pad padbyte padword "
    "padlong paddword table cleartable if elseif else endif while endwhile for endfor macro endmacro print error "
    "assert warn warnings warnpc skip freecode freedata freespace freespacebyte prot autoclean autoclear bank "
    "bankcross check math optimize global struct endstruct undef reset xkas asar function double float expecttitle"
)
_HINTS = {
    "bge": "write bcs",
    "blt": "write bcc",
    "ina": "write inc",
    "dea": "write dec",
    "swa": "write xba",
    "tad": "write tcd",
    "tda": "write tdc",
    "tas": "write tcs",
    "tsa": "write tsc",
    ".byte": "write db",
    ".word": "write dw",
    ".addr": "write dw",
    ".faraddr": "write dl",
    ".dword": "write dd",
    **{f".{name}": f"write {name}" for name in (*DATA_BYTES, "org")},
    **dict.fromkeys(("incbin", "incsrc", "include", "table"), "no file is read here"),
    **dict.fromkeys(("macro", "while", "for", "if", "print", "function"), "write the code out, without directives"),
    **dict.fromkeys(("hirom", "exlorom", "exhirom", "sa1rom"), "only LoROM is assembled here"),
}
# Other assemblers' notes on M and X. Asar would take them for labels and change nothing.
_WIDTH_NOTES = _words(".a8 .a16 .i8 .i16 .smart .accu .al .as .xl .xs .mx")
_SIGN_HINTS = {
    "!": "defines are not accepted",
    "@": "this sign is not accepted",
    "\\": "lines cannot be joined",
    '"': "quotes are not accepted; write the bytes",
    "'": "quotes are not accepted; write the bytes",
    "{": "defines are not accepted",
    "}": "defines are not accepted",
    "`": "this is Markdown, not assembly",
}

# --- How it is written --------------------------------------------------------------------------------------------

_NAME = r"[A-Za-z_][A-Za-z0-9_]{0,63}"
_GLOBAL_LABEL = re.compile(rf"({_NAME}):")
_LOCAL_LABEL = re.compile(rf"(\.{{1,3}}{_NAME}):?")
_ANONYMOUS = re.compile(r"(\+{1,8}|-{1,8})")
_ANONYMOUS_LABEL = re.compile(rf"{_ANONYMOUS.pattern}:?")
_TERM = re.compile(
    rf"(?P<number>\$[0-9A-Fa-f]{{1,8}}|%[01]{{1,32}}|[0-9]{{1,10}})(?![A-Za-z0-9_])|(?P<name>\.{{0,3}}{_NAME})"
)
_OPERATOR = re.compile(r"<<|>>|[-+*/&|^]")
_PRECEDENCE = {"|": 0, "^": 1, "&": 2, "<<": 3, ">>": 3, "+": 4, "-": 4, "*": 5, "/": 5}
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


class _RefusedError(Exception):
    """A part of a line is outside the grammar; the message goes to the user."""


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
        except _RefusedError as refused:
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
            raise _RefusedError("control characters are not accepted")
        # Asar acts on `;@xkas`: comments never reach it. Being dropped, they may hold any printable text.
        code = line.partition(";")[0].strip(" \t")
        if len(code) > MAX_LINE_CHARS:
            raise _RefusedError(f"the line is longer than {MAX_LINE_CHARS:,} characters")
        if bad := _BAD_SIGN.search(code):
            hint = _SIGN_HINTS.get(
                bad[0], "this sign is not accepted" if bad[0].isascii() else "only ASCII is accepted"
            )
            raise _RefusedError(f"{bad[0]!r}: {hint}")
        if "//" in code:
            raise _RefusedError("'//': a comment starts with ;")
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
                raise _RefusedError("nothing stands on one side of ':'")
        if part:
            words.append(self._command(part.replace("\t", " ")))
        return " ".join(words)

    def _label(self, word: str, rest: str) -> str | None:
        """The label in canonical form, None when the word is none."""
        if found := _GLOBAL_LABEL.fullmatch(word):
            _free_name(found[1])
            self.has_parent = True
        elif found := _LOCAL_LABEL.fullmatch(word):
            if word.lower() in _WIDTH_NOTES:
                raise _RefusedError(f"{word}: Asar sizes an immediate by its digits, or by .b and .w")
            if rest and not word.endswith(":") and not _starts_command(rest):
                raise _RefusedError(f"{word}: {_HINTS.get(word.lower(), 'this is a directive of another assembler')}")
            if not self.has_parent:
                raise _RefusedError(f"{found[1]} has no parent: put a label like main: before it")
        elif found := _ANONYMOUS_LABEL.fullmatch(word):
            self.has_label = True
            return found[1]
        else:
            return None
        self.has_label = True
        return f"{found[1]}:"

    def _command(self, command: str) -> str:
        if re.match(r"\S+:( |$)", command):
            raise _RefusedError(f"{command.split()[0]!r} is not a label: letters, digits and _, the first no digit")
        if ":" in command:
            raise _RefusedError(f"{command[:40]!r}: a colon needs a space after it, and one before it between commands")
        word, _, rest = command.partition(" ")
        rest = rest.strip(" ")
        if rest.startswith("="):
            return self._assignment(word, rest[1:])
        if rest[:4].lower() == "equ ":
            raise _RefusedError("equ: write name = value")
        name, dot, suffix = word.lower().partition(".")
        operand = re.sub(", +", ",", rest)
        if " " in operand:
            raise _RefusedError(f"{rest!r}: no space is accepted here, except after a comma")
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
        raise _RefusedError(_unknown(word))

    def _assignment(self, name: str, value: str) -> str:
        if not re.fullmatch(_NAME, name):
            raise _RefusedError(f"{name!r} is not a name")
        _free_name(name)
        if name.lower() in _DIRECTIVES:
            raise _RefusedError(f"{name!r} is not a name for a value; Asar has a directive of that name")
        return f"{name} = {self._expression(value.strip(' ')).text}"

    def _org(self, operand: str) -> str:
        if not re.fullmatch(r"\$([0-9A-Fa-f]{4}|[0-9A-Fa-f]{6})", operand):
            raise _RefusedError("org takes one address of four or six hexadecimal digits, like $008000")
        if self.org is not None or self.has_code or self.has_label:
            raise _RefusedError("org is accepted once, before the first label, instruction and data")
        address = int(operand[1:], 16)
        if not lorom_address(address):
            raise _RefusedError(f"{operand} is not LoROM: banks $00-$7D and $80-$FF, addresses $8000-$FFFF")
        self.org = address
        return f"org ${address:06X}"

    def _data(self, name: str, operand: str) -> str:
        values = [self._expression(value) for value in operand.split(",")]
        for value in values:
            value.must_fit(DATA_BYTES[name], by_digits=False)
        return f"{name} " + ",".join(value.text for value in values)

    def _instruction(self, name: str, suffix: str | None, operand: str) -> str:
        if suffix is not None and suffix not in _SUFFIX_BYTES:
            raise _RefusedError(f"{name}.{suffix}: the sizes are .b, .w and .l")
        shape, texts = _shape_of(operand)
        if shape not in SHAPES[name]:
            raise _RefusedError(_wrong_shape(name, shape, operand))
        if shape == "e" and _ANONYMOUS.fullmatch(operand):
            return _spelt(name, suffix, operand)
        values = [self._expression(text) for text in texts]
        if name in BRANCHES and not values[0].has_label:
            raise _RefusedError(f"{name} takes a label; Asar takes a number as the raw distance, not as an address")
        if suffix and (shape in ("-", "a", "e,e") or (suffix == "l" and shape == "#e")):
            raise _RefusedError(f"{name}.{suffix}: there is no such size here")
        if suffix == "l" and name in ("jmp", "jsr"):
            raise _RefusedError(f"{name}.l: write {'jml' if name == 'jmp' else 'jsl'}")
        for value in values:
            value.must_fit(_operand_bytes(name, shape, suffix), by_digits=suffix is None)
        # Every sign of the operand has been matched by its shape or by an expression.
        return _spelt(name, suffix, operand)

    def _expression(self, text: str) -> "_Expression":
        return _Expression.read(text, self.has_parent)


@dataclass(frozen=True)
class _Expression:
    """Numbers and labels joined by operators. `value` and `digits_bytes` are known for a single number only."""

    text: str
    has_label: bool
    value: int | None
    digits_bytes: int

    @classmethod
    def read(cls, text: str, has_parent: bool) -> "_Expression":
        position = 1 if text[:1] in ("-", "~") else 0
        has_label = False
        numbers: list[str] = []
        operators: list[str] = []
        while True:
            term = _TERM.match(text, position)
            if term is None:
                raise _RefusedError(_bad_term(text, text[position:]))
            if name := term["name"]:
                has_label = True
                if not name.startswith("."):
                    _free_name(name)
                elif not has_parent:
                    raise _RefusedError(f"{name} has no parent: put a label like main: before it")
            else:
                numbers.append(term["number"])
            position = term.end()
            if position == len(text):
                break
            operator = _OPERATOR.match(text, position)
            if operator is None:
                raise _RefusedError(_bad_term(text, text[position:]))
            operators.append(operator[0])
            position = operator.end()
        levels = [_PRECEDENCE[operator] for operator in operators]
        if levels != sorted(levels, reverse=True):
            raise _RefusedError(f"{text!r}: Asar reckons from left to right; reorder it or give the result")
        single = not operators and not has_label and text[0] != "~"
        value = _value(numbers[0]) * (-1 if text[0] == "-" else 1) if single else None
        return cls(text, has_label, value, _digits_bytes(numbers[0]) if single else 0)

    def must_fit(self, size_bytes: int, by_digits: bool) -> None:
        """Asar cuts a number off in silence; `by_digits` where it also takes the size from the digits written."""
        if self.value is None:
            return
        low, high = -(1 << (8 * size_bytes - 1)), (1 << (8 * size_bytes)) - 1
        if not low <= self.value <= high or (by_digits and self.digits_bytes > size_bytes):
            unit = "byte" if size_bytes == 1 else "bytes"
            raise _RefusedError(
                f"{self.text} does not fit into {size_bytes} {unit}; Asar would cut it off or refuse it"
            )


def lorom_address(address: int) -> bool:
    """Whether a 24-bit CPU address lies in LoROM."""
    return 0 <= address <= 0xFFFFFF and bool(address & 0x8000) and (address >> 16) not in (0x7E, 0x7F)


def _spelt(name: str, suffix: str | None, operand: str) -> str:
    return f"{name}.{suffix} {operand}" if suffix else f"{name} {operand}".rstrip()


def _value(number: str) -> int:
    return int(number[1:], {"$": 16, "%": 2}[number[0]]) if number[0] in "$%" else int(number)


def _digits_bytes(number: str) -> int:
    """The size in bytes that Asar gives to a number: from the digits of $ and %, from the value of a decimal."""
    if number[0] == "$":
        return len(number) // 2
    if number[0] == "%":
        return (len(number) + 6) // 8
    return max(1, (int(number).bit_length() + 7) // 8)


def _operand_bytes(name: str, shape: str, suffix: str | None) -> int:
    """The widest number this operand holds."""
    if name in _ONE_BYTE_IMMEDIATE or shape == "e,e" or (name in ("stx", "sty") and shape != "e"):
        return 1
    if shape in ("#e", "e,y") or (name in ("jmp", "jsr", "jml") and shape != "e"):
        widest = 2
    elif shape in ("e", "e,x"):
        widest = 3 if name in _LONG else 2
    else:
        widest = 1
    return min(widest, _SUFFIX_BYTES[suffix]) if suffix else widest


def _shape_of(operand: str) -> tuple[str, tuple[str, ...]]:
    """The operand's shape and the expressions in it."""
    if not operand:
        return "-", ()
    for shape, pattern in _SHAPE_PATTERNS.items():
        if found := pattern.fullmatch(operand.lower()):
            return shape, tuple(operand[slice(*found.span(group))] for group in range(1, pattern.groups + 1))
    raise _RefusedError(f"{operand!r} is not an operand of the 65816")


def _free_name(name: str) -> None:
    if name.lower() in _RESERVED:
        raise _RefusedError(f"{name!r} is an instruction, a register or a directive, not a name for a label")
    if name.lower().startswith("afs_"):
        raise _RefusedError(f"{name!r}: names that start with afs_ are taken")


def _wrong_shape(name: str, shape: str, operand: str) -> str:
    if name == "rep" and shape == "e":
        return f"rep {operand} repeats the next command; write rep #{operand}"
    if shape == "e" and name in _ONE_BYTE_IMMEDIATE:
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


def _bad_term(text: str, rest: str) -> str:
    if not rest:
        return f"{text!r}: a number or label is missing at the end" if text else "a number or label is missing"
    if rest[0] in "<>":
        return (
            f"{text!r}: Asar has no < and >; write label with .b for the low byte, label>>8 or label>>16 for the others"
        )
    if rest[0] == "%":
        return f"{text!r}: % only starts a binary number"
    return f"{text!r}: {rest[:20]!r} is neither a number nor a label"


def _unknown(word: str) -> str:
    if hint := _HINTS.get(word.lower()) or _HINTS.get(word.lower().partition(".")[0]):
        return f"{word}: {hint}"
    if word.startswith("%"):
        return f"{word!r}: macros are not accepted; % only starts a binary number"
    if re.fullmatch(_NAME, word):
        return f"{word!r} is no instruction; a label ends with a colon"
    return f"{word!r} is not understood"
