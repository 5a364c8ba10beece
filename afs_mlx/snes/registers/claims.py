"""What a text claims about SNES registers: an address and a name tied to each other, and whether the table agrees.

Reads prose, tables and comments line by line, in the forms people write: `$2100 (INIDISP)`, `VMAIN is at $2115`,
`sta $2100 ; INIDISP`. It understands no English: what stands in no known form is no claim, and a wrong pair in a
question, after a "not" or beside a word like "incorrect" is taken for a quotation.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

from afs_mlx.snes.mnemonics import DIRECTIVES, RESERVED
from afs_mlx.snes.registers.table import by_name, name_of

MAX_TEXT_CHARS = 4 * 1024 * 1024

type Verdict = Literal["right", "wrong", "unknown"]
type Span = tuple[int, int]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Every look around a place is this long at most, which keeps the whole linear in the text.
_MAX_GLUE_CHARS = 120
_NEAR_CHARS = 32
_SENTENCE_CHARS = 160
_MAX_GROUP = 16

_HEX = r"(21[0-9A-F]{2}|401[67]|42[0-9A-F]{2}|43[0-9A-FXN][0-9A-F])"
_TOKEN = re.compile(
    rf"(?<![A-Z0-9$#%&])(?:(?:(?:\$|0x)(?:([0-9A-F]{{2}})[:/]?)?{_HEX}|0?{_HEX}h)(?![A-Z0-9])|([A-Z][A-Z0-9_]+))", re.I
)
_ANY_ADDRESS = re.compile(_HEX, re.I)
_LOW_DIGITS = re.compile(r"([-/–])([0-9A-Fa-f]{1,4})(?![A-Za-z0-9])")
_LAST_LETTERS = re.compile(r"([-/–])([A-Za-z0-9]{1,2})(?![A-Za-z0-9_])")
_PREFIX = re.compile(r"(?:REG|SNES|PPU|CPU|HW)_(?=.)")
_UNKNOWN_NAME = re.compile(r"[A-Z][A-Z0-9_]{2,15}")
# Names that are also words: only in capitals do they name the register.
_ALSO_WORDS = frozenset({"MOSAIC", "TM", "TS", "DAS", "MPY"})
_ORDINARY = _words(
    "PPU PPU1 PPU2 CPU APU SPC SPC700 DSP DMA GPDMA MDMA HDMA VRAM WRAM SRAM ARAM CGRAM OAM RAM ROM SNES SFC NES NMI "
    "IRQ VBLANK HBLANK FBLANK BLANK BG1 BG2 BG3 BG4 OBJ OBJ1 OBJ2 RGB BGR PAL NTSC CRT LOROM HIROM FASTROM SLOWROM "
    "MMIO BCD ASCII LSB MSB LOW HIGH BYTE WORD LONG BIT BITS REG REGISTER REGISTERS ADDR ADDRESS VALUE DATA MODE MODE7 "
    "READ WRITE ONLY OFF ALL ANY NOT XOR THE FOR USE SET YES TODO NOTE WARNING IMPORTANT TIP HEX BIN ASM WLA CA65 BASS "
    "PORT UNUSED RESERVED NULL NONE MUST NEVER ALWAYS JOYPAD SCREEN DISPLAY COLOR COLOUR PALETTE SPRITE SPRITES TILE "
    "TILES WINDOW TIMER INPUT OUTPUT"
) | {word.upper() for word in RESERVED | DIRECTIVES}

_SIGNS = {**dict.fromkeys("–—−‐‑", "-"), "→": "->", "⇒": "=>", "’": "'", "‘": "'", "：": ":"}
_PLAIN = str.maketrans({**dict.fromkeys('*_`"“”«»\\~!'), **_SIGNS})
_JOINT = re.compile(r" ?(/|,|&|\+|-|\.\.\.?|…|,? ?and|or|to|through) ?")
_TIES = r"(?:(?:the|a|an|registers?|reg|called|named|known as|labell?ed|also|actually|really) )*"
_PLACE = (
    r"(?:(?:the|its|address|addr|addresses|registers?|reg|port|located|found|mapped|memory|cpu|ppu|i/o|io|mmio|hardware|"
    r"snes|at|hex|write-only|read-only|w|r|r/w|rw)[:,]? )*"
)
_VERBS = r"(?:(?:set|writes?|stores?|clear|reads?|load|init|enable|select|to|into|in|via|from|the|register) )*"
_WORD = r"[\w/&'+-]+"
_TAIL = r"(?:registers?|reg|ports?)"

# A form: its name, how strongly it ties (the stronger wins a common partner), and what stands between the two.
_ADDRESS_NAME = [
    ("paren", 3, rf" ?[(\[] ?(?:aka |a\.k\.a\. |i\.e\. |name: )?{_TIES}"),
    (
        "is",
        3,
        rf"(?: {_TAIL})?(?: on the (?:snes|ppu))?,? (?:is|are|means|equals|(?:corresponds|refers|maps) to) {_TIES}",
    ),
    ("is", 3, rf" ?[,;:-] ?(?:which|that|this|it)(?: is|'s) {_TIES}"),
    ("is", 3, rf"(?: {_TAIL})?,? (?:aka|a\.k\.a\.|i\.e\.|also known as|known as|called|named) (?:the )?"),
    ("comment", 3, rf" ?(?:;|//) ?{_VERBS}"),
    ("words", 3, rf",? (?:is|are) (?:the|an?) (?:{_WORD} ){{1,14}}\("),
    ("words", 3, rf"(?:,| -| ?:)? (?:{_WORD} ){{0,8}}(?:register|reg|port) \("),
    ("words", 3, rf" ?\((?:{_WORD} ){{0,8}}{_WORD}, "),
    ("equals", 2, r" ?==? ?|, name: "),
    ("sign", 2, r" ?(?::|->|=>) ?(?:the )?"),
    ("row", 2, r" ?\| ?"),
    ("sign", 1, r" ?- ?"),
    ("equals", 1, r" ?/ ?| register "),
    ("beside", 1, r" |,"),
    ("bracketed", 1, r", "),
    ("far row", 1, r" ?\|(?:[^|]{0,40}\|){1,3} ?"),
]
_NAME_ADDRESS = [
    ("paren", 3, rf"(?: (?:{_WORD} ){{0,5}}{_TAIL})?\]{{0,2}} ?[(\[] ?{_PLACE}"),
    ("is", 3, rf"(?: {_TAIL})?,?(?: which)? (?:is|are) {_PLACE}"),
    ("is", 3, rf" (?:is |are )?(?:maps|mapped|corresponds) to {_PLACE}"),
    ("is", 3, rf"(?:'s| has)? (?:the )?address (?:is |of )?{_PLACE}"),
    ("at", 3, rf"(?: {_TAIL})?,?(?: which)?(?: is| are| lives| resides| sits| lies)? {_PLACE}(?:at|@) {_PLACE}"),
    ("noun", 3, rf",? (?:is )?(?:{_WORD} ){{0,8}}{_TAIL},? (?:located |found |mapped )?(?:at |\(){_PLACE}"),
    ("noun", 3, rf" ?\((?:{_WORD} ){{0,8}}{_WORD}, {_PLACE}"),
    ("noun", 3, rf" ?\((?:{_WORD} ){{0,8}}{_WORD}\)(?: {_TAIL})?(?: is)?(?: located)?(?: ?[-:=(]| at)? ?{_PLACE}"),
    ("comment", 3, rf" ?(?:;|//) ?{_PLACE}"),
    ("equals", 2, rf" ?:?==? ?{_PLACE}|:? \.?equ |, address:? "),
    ("sign", 2, rf" ?(?::|->|=>) ?{_PLACE}"),
    ("row", 2, r" ?\| ?"),
    ("sign", 1, r" ?- ?"),
    ("equals", 1, r" ?/ ?"),
    ("beside", 1, r" |,"),
    ("bracketed", 1, r", "),
    ("far row", 1, r" ?\|(?:[^|]{0,40}\|){1,3} ?"),
]
_FORMS = {
    is_name: [(form, strength, re.compile(between)) for form, strength, between in forms]
    for is_name, forms in ((False, _ADDRESS_NAME), (True, _NAME_ADDRESS))
}
_NOT = re.compile(rf",? (?:(?:is|are|was) not|isn't|aren't) (?:{_TIES}|{_PLACE})")
_BUT = re.compile(rf" ?[,;.-]? ?(?:but|it is|it's|rather)(?: rather| instead| it is)? (?:{_TIES}|{_PLACE})")
# A word of these in a description, and the name at its end need not be what is described.
_LOOSE = _words(
    "not no never unlike after before until with without via through when while if because then than where whose see "
    "next other instead except together followed depends during using from"
)
_LOOSE_NOUN = _LOOSE | _words("that which for of to used makes on by lets and")

_CLOSED = re.compile(rf" ?(?:[)\]|,:;/.(-]|$)| {_TAIL}\b| (?:bits? [\d-]+|(?:read|write)[^()]{0, 16})\)")
_GOES_ON = re.compile(r" (?!(?:and|or|which|that|on|in|at|for|but|while|not|to|so)\b)[a-z]")
_CELL_END = re.compile(r" ?(?:\||$)")
_DIRECT = "lda|ldx|ldy|sta|stx|sty|stz|bit|and|ora|eor|adc|sbc|cmp|cpx|cpy|inc|dec|asl|lsr|rol|ror|tsb|trb"
_INSTRUCTION_BEFORE = re.compile(rf"\b(?:{_DIRECT})(?:\.[bwl])?\s+[!>]?(?:REG_|SNES_)?$", re.I)
_CELL_BEFORE = re.compile(r"(?:^|\|)[^\w|]*$")
_OPENS = re.compile(
    r"(?:^\W*(?:\d{1,3}[.)]\s*)?(?:the\s+|[#.]?(?:define|equ|set|const)\s+)?|[(\[|:;.]\s*|\bregisters?\s+)[*_`!]*$",
    re.I,
)
_BRACKET_BEFORE = re.compile(r"(?:[(\[]|\.(?:equ|set|define)\s+)[*_`'\"]*$", re.I)
# What the named register does to the addressed one.
_ACTS = re.compile(r"'s | (?:writes?|reads?|access(?:es)?|triggers?|increments?|must|needs?)\b")
_CAPITALS_BEFORE = re.compile(r"[A-Z]{2}[ -]$")
_NEGATED = re.compile(
    r"(?:\b(?:not|never|nor|unlike|rather than|instead of)|n['’]t)\W+"
    r"(?:(?:the|an?|to|at|in|as|registers?|address|called|named)\W+)*$",
    re.I,
)
_QUOTED = re.compile(r"\b(?:wrong|incorrect|mistake|mislabel|misname|misidentif|erroneous|inaccura|typo)", re.I)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")


@dataclass(frozen=True)
class Claim:
    """That `name` is the register at `address`; `line` counts from 1, `start` is where the pair begins in the text.

    `address` has 16 bits, the lowest that is meant; `expected` is the name there, empty when there is no register.
    """

    address: int
    name: str
    start: int
    line: int
    verdict: Verdict
    expected: str

    def message(self) -> str:
        """The verdict as a sentence for people."""
        here = f"${self.address:04X} is {self.expected or 'no register'}"
        if self.verdict == "right":
            return f"line {self.line}: ${self.address:04X} is {self.name}"
        if self.verdict == "unknown":
            return f"line {self.line}: no register is called {self.name}; {here}"
        owners = by_name(self.name)
        if len(owners) > 2:
            where = f"${owners[0].address:04X} and others"
        else:
            where = " or ".join(f"${owner.address:04X}" for owner in owners)
        return f"line {self.line}: {here}, not {self.name} ({self.name} is {where})"


def claims(text: str) -> list[Claim]:
    """Every claim of a text in order, right ones too; nothing is read beyond `MAX_TEXT_CHARS`.

    A DMA name or address with x or n for the channel stands for all eight. A name for a pair or a row (VMADD, WH0-WH3)
    is right at each address it covers, and WMADDH at $2182 and $2183.
    """
    found: list[Claim] = []
    offset = 0
    for number, line in enumerate(text[:MAX_TEXT_CHARS].split("\n"), start=1):
        if _ANY_ADDRESS.search(line):
            found.extend(_Line(line, number, offset).claims())
        offset += len(line) + 1
    return found


@dataclass(frozen=True, slots=True)
class _Mention:
    """An address (no name; eight addresses for `$43x0`) or a name (no address when no table knows it)."""

    name: str
    addresses: tuple[int, ...]


@dataclass(slots=True)
class _Group:
    """Mentions of one kind joined by signs or words: `$2118/$2119`, `VMADDL and VMADDH`."""

    is_name: bool
    start: int
    end: int
    members: list[_Mention]
    joints: set[str]

    @property
    def is_known(self) -> bool:
        return all(member.addresses for member in self.members)

    @property
    def is_range(self) -> bool:
        return len(self.members) == 2 and self.joints <= {"-", "..", "...", "…", "to", "through"}

    @property
    def is_list(self) -> bool:
        return len(self.members) > 1 and not self.is_range and self.joints != {"/"}


class _Line:
    """One line, its groups of mentions, and which of them are tied."""

    def __init__(self, text: str, number: int, offset: int) -> None:
        self.text = text
        self.number = number
        self.offset = offset

    def claims(self) -> Iterator[Claim]:
        groups = list(_groups(self.text))
        if len({group.is_name for group in groups}) < 2:
            return
        taken: set[tuple[int, bool]] = set()  # group, and whether its right side is taken
        chosen: list[tuple[int, int, str]] = []
        for _, first, second, form in sorted(self._ties(groups), key=lambda tie: (-tie[0], tie[1])):
            if (first, True) not in taken and (second, False) not in taken:
                chosen.append((first, second, form))
                for at, right in ((first, True), (second, False)):
                    # In a list, only the near end is tied; the far end may belong to another partner.
                    taken |= {(at, right)} if groups[at].is_list else {(at, True), (at, False)}
        for first, second, form in sorted(chosen):
            yield from self._judged(groups[first], groups[second], form)

    def _ties(self, groups: list[_Group]) -> Iterator[tuple[int, int, int, str]]:
        """Strength, first and second group, and form of every pair that could be a claim."""
        for at, (first, second) in enumerate(pairwise(groups)):
            between = self._between(first, second)
            if first.is_name == second.is_name or between is None:
                continue
            form, strength = _form(between, first.is_name)
            if form and self._fits(form, between, first, second):
                yield strength, at, at + 1, form
            elif at + 2 < len(groups) and groups[at + 2].is_name == second.is_name and _NOT.fullmatch(between):
                but = self._between(second, groups[at + 2])
                if but is not None and _BUT.fullmatch(but):
                    yield 3, at, at + 2, "is"

    def _between(self, first: _Group, second: _Group) -> str | None:
        return _plain(self.text[first.end : second.start]) if second.start - first.end <= _MAX_GLUE_CHARS else None

    def _fits(self, form: str, between: str, first: _Group, second: _Group) -> bool:
        """Whether what stands around the two allows the form."""
        text, start = self.text, first.start
        near = max(0, start - _NEAR_CHARS)
        rest = _plain(text[second.end : second.end + _NEAR_CHARS])
        in_code = bool(_INSTRUCTION_BEFORE.search(text, near, start))
        words = {word.strip("(),:") for word in between.split()}
        if second.is_name and _ACTS.match(rest):
            return False
        if not (first.is_known and second.is_known):
            clear = form in ("paren", "is", "row") or (form == "equals" and "=" in between)
            if not clear or not _CLOSED.match(rest) or _CAPITALS_BEFORE.search(text, near, start):
                return False
        match form:
            case "paren":
                return bool(_CLOSED.match(rest)) and not words & _LOOSE
            case "is":
                return "the" not in words or not _GOES_ON.match(rest) or bool(_CLOSED.match(rest))
            case "comment":
                return in_code and (second.is_name or bool(_CLOSED.match(rest)))
            case "words" | "noun":
                return not words & (_LOOSE if form == "words" else _LOOSE_NOUN) and bool(_CLOSED.match(rest))
            case "row":
                return bool(in_code or _CELL_BEFORE.search(text, near, start)) and bool(_CLOSED.match(rest))
            case "far row":
                return bool(in_code or _CELL_BEFORE.search(text, near, start)) and bool(_CELL_END.match(rest))
            case "sign":
                return bool(_OPENS.search(text, near, start))
            case "beside":
                return bool(_CLOSED.match(rest) or _OPENS.search(text, near, start))
            case "bracketed":
                return bool(_BRACKET_BEFORE.search(text, near, start))
        return True

    def _judged(self, first: _Group, second: _Group, form: str) -> Iterator[Claim]:
        addresses, names = (second, first) if first.is_name else (first, second)
        for spans, mention in _pairs(addresses, names):
            verdict: Verdict = "right" if mention.addresses else "unknown"
            hit = next((at for at in mention.addresses for low, high in spans if low <= at <= high), None)
            address = spans[0][0] if hit is None else hit
            if hit is None and mention.addresses:
                if _is_value(address, mention, form, self._between(first, second) or ""):
                    continue
                verdict = "wrong"
            if verdict != "right" and self._is_quoted(first.start, second.end):
                continue
            expected = name_of(address) or ""
            if hit is None and expected and len(spans) == 8:
                before, _, after = expected.rpartition("0")
                expected = f"{before}x{after}"
            yield Claim(address, mention.name, self.offset + first.start, self.number, verdict, expected)

    def _is_quoted(self, start: int, end: int) -> bool:
        """Whether the sentence denies the pair, asks for it or calls it wrong."""
        before = _SENTENCE_END.split(self.text[max(0, start - _SENTENCE_CHARS) : start])[-1]
        after = self.text[end : end + _SENTENCE_CHARS]
        stop = _SENTENCE_END.search(after)
        return bool(
            _NEGATED.search(before[-_NEAR_CHARS:])
            or (stop and stop[0] == "?")
            or _QUOTED.search(before + self.text[start:end] + after[: stop.start() if stop else None])
        )


def _groups(line: str) -> Iterator[_Group]:
    """The mentions of a line, joined where a sign or word joins them; nothing when no address is named."""
    group: _Group | None = None
    for found in _TOKEN.finditer(line):
        bank, with_sign, with_h, word = found.groups()
        members = _named(word) if word else _addressed(bank, with_sign or with_h)
        start, end = found.span()
        if not members or (group and start < group.end):
            continue
        joints: set[str] = set()
        tail = _LAST_LETTERS if word else _LOW_DIGITS
        while members[0].addresses and len(members) < _MAX_GROUP and (more := tail.match(line, end)):
            whole = (word or with_sign or with_h)[: -len(more[2])] + more[2]
            added = _named(whole) if word else _addressed(bank, whole)
            if not added or not added[0].addresses:
                break
            members.extend(added)
            joints.add(_plain(more[1]))
            end = more.end()
        between = _plain(line[group.end : start]) if group and start - group.end <= _MAX_GLUE_CHARS else ""
        joint = _JOINT.fullmatch(between)
        if (
            group
            and joint
            and group.is_name == bool(word)
            and members[0].addresses
            and group.is_known
            and len(group.members) < _MAX_GROUP
        ):
            group.end = end
            group.members.extend(members)
            group.joints |= joints | {joint[1].strip(", ")}
            continue
        if group:
            yield group
        group = _Group(bool(word), start, end, members, joints)
    if group:
        yield group


def _addressed(bank: str | None, digits: str) -> list[_Mention]:
    if not re.fullmatch(_HEX, digits, re.I) or (bank and int(bank, 16) & 0x40):
        return []
    if digits[2] in "xXnN":
        return [_Mention("", tuple(int(f"43{channel}{digits[3]}", 16) for channel in range(8)))]
    address = int(digits, 16)
    # These repeat the four APU ports: any name of theirs would be right.
    return [] if 0x2144 <= address <= 0x217F else [_Mention("", (address,))]


@lru_cache(maxsize=4096)
def _mention(word: str) -> _Mention | None:
    name = _PREFIX.sub("", word.rstrip("_"), count=1)
    if owners := by_name(name):
        if name.upper() in _ALSO_WORDS and not name.isupper():
            return None
        return _Mention(name, tuple(owner.address for owner in owners))
    return _Mention(name, ()) if _UNKNOWN_NAME.fullmatch(name) and name not in _ORDINARY else None


def _named(word: str) -> list[_Mention]:
    found = _mention(word) if len(word) <= _NEAR_CHARS else None
    return [found] if found else []


@lru_cache(maxsize=4096)
def _plain(text: str) -> str:
    """Without Markdown's and quotation signs, with single spaces, plain dashes and small letters."""
    text = re.sub(r"<[^<>]{1,24}>", " ", text).translate(_PLAIN)
    return re.sub(r"\s+", " ", re.sub(r"'(?![st]\b)", "", text)).lower()


@lru_cache(maxsize=4096)
def _form(between: str, first_is_name: bool) -> tuple[str, int]:
    """The first form that the text between two mentions has, and its strength; an empty name for none."""
    for form, strength, pattern in _FORMS[first_is_name]:
        if pattern.fullmatch(between):
            return form, strength
    return "", 0


def _pairs(addresses: _Group, names: _Group) -> Iterator[tuple[list[Span], _Mention]]:
    """The names that are claimed, each with the addresses, from and to, of which one must be its own."""
    single = [[(address, address) for address in member.addresses] for member in addresses.members]
    count = len(names.members)
    first, last = addresses.members[0].addresses, addresses.members[-1].addresses
    whole = [(min(pair), max(pair)) for pair in zip(first, last, strict=False)]
    follow = all(b.addresses[0] - a.addresses[0] == 1 for a, b in pairwise(addresses.members))
    if addresses.is_range and not (names.is_range and count == 2):
        if first[0] + count - 1 == last[0]:
            spans = [[(low + step, low + step) for low in first] for step in range(count)]
        else:
            spans = [whole] * count
        yield from zip(spans, names.members, strict=True)
    elif len(single) == count:
        yield from zip(single, names.members, strict=True)
    elif len(single) == 1 and not names.is_list:
        # One address for a register of several bytes: VMADDL/VMADDH ($2116).
        yield from ((([(low, low + count - 1) for low in first]), name) for name in names.members)
    else:
        address_first = addresses.start < names.start
        near_name = names.members[0 if address_first else -1]
        if len(single) == 1:
            yield [(low, low + count - 1) for low in first], near_name
        else:
            yield whole if follow else single[-1 if address_first else 0], near_name


def _is_value(address: int, name: _Mention, form: str, between: str) -> bool:
    """Whether the address may be what is written to the register, or the name what a DMA channel writes to."""
    pages = (address >> 8, name.addresses[0] >> 8)
    if pages == (0x43, 0x21) and (form == "comment" or address & 15 == 1):
        return True
    if pages == (0x21, 0x43) and name.addresses[0] & 15 == 1:
        return True
    holds_addresses = name.name.upper().startswith(("VMADD", "WMADD", "OAMADD", "A1T", "A2A", "DAS"))
    return holds_addresses and pages[0] != pages[1] and (form == "comment" or between.strip() in ("=", ":"))
