"""What a text claims about SNES registers: an address and a name tied to each other, and whether the table agrees.

Reads prose, tables and comments line by line, in the forms people write: `$2100 (INIDISP)`, `VMAIN is at $2115`,
`sta $2100 ; INIDISP`. It understands no English: what stands in no known form is no claim, and a wrong pair in a
question, after a "not" or beside a word like "incorrect" is taken for a quotation.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from afs_mlx.snes.registers.mentions import ANY_ADDRESS, MAX_GLUE_CHARS, NEAR_CHARS, Group, Mention, groups_in
from afs_mlx.snes.registers.table import by_name, name_of
from afs_mlx.snes.registers.wording import BUT, LOOSE, LOOSE_NOUN, NOT, TAIL, form_of, plain

MAX_TEXT_CHARS = 4 * 1024 * 1024

type Verdict = Literal["right", "wrong", "unknown"]
type Span = tuple[int, int]


_SENTENCE_CHARS = 160

_CLOSED = re.compile(rf" ?(?:[)\]|,:;/.(-]|$)| {TAIL}\b| (?:bits? [\d-]+|(?:read|write)[^()]{0, 16})\)")
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
        if ANY_ADDRESS.search(line):
            found.extend(_Line(line, number, offset).claims())
        offset += len(line) + 1
    return found


class _Line:
    """One line, its groups of mentions, and which of them are tied."""

    def __init__(self, text: str, number: int, offset: int) -> None:
        self.text = text
        self.number = number
        self.offset = offset

    def claims(self) -> Iterator[Claim]:
        groups = list(groups_in(self.text))
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

    def _ties(self, groups: list[Group]) -> Iterator[tuple[int, int, int, str]]:
        """Strength, first and second group, and form of every pair that could be a claim."""
        for at, (first, second) in enumerate(pairwise(groups)):
            between = self._between(first, second)
            if first.is_name == second.is_name or between is None:
                continue
            form, strength = form_of(between, first.is_name)
            if form and self._fits(form, between, first, second):
                yield strength, at, at + 1, form
            elif at + 2 < len(groups) and groups[at + 2].is_name == second.is_name and NOT.fullmatch(between):
                but = self._between(second, groups[at + 2])
                if but is not None and BUT.fullmatch(but):
                    yield 3, at, at + 2, "is"

    def _between(self, first: Group, second: Group) -> str | None:
        return plain(self.text[first.end : second.start]) if second.start - first.end <= MAX_GLUE_CHARS else None

    def _fits(self, form: str, between: str, first: Group, second: Group) -> bool:
        """Whether what stands around the two allows the form."""
        text, start = self.text, first.start
        near = max(0, start - NEAR_CHARS)
        rest = plain(text[second.end : second.end + NEAR_CHARS])
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
                return bool(_CLOSED.match(rest)) and not words & LOOSE
            case "is":
                return "the" not in words or not _GOES_ON.match(rest) or bool(_CLOSED.match(rest))
            case "comment":
                return in_code and (second.is_name or bool(_CLOSED.match(rest)))
            case "words" | "noun":
                return not words & (LOOSE if form == "words" else LOOSE_NOUN) and bool(_CLOSED.match(rest))
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

    def _judged(self, first: Group, second: Group, form: str) -> Iterator[Claim]:
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
            _NEGATED.search(before[-NEAR_CHARS:])
            or (stop and stop[0] == "?")
            or _QUOTED.search(before + self.text[start:end] + after[: stop.start() if stop else None])
        )


def _pairs(addresses: Group, names: Group) -> Iterator[tuple[list[Span], Mention]]:
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


def _is_value(address: int, name: Mention, form: str, between: str) -> bool:
    """Whether the address may be what is written to the register, or the name what a DMA channel writes to."""
    pages = (address >> 8, name.addresses[0] >> 8)
    if pages == (0x43, 0x21) and (form == "comment" or address & 15 == 1):
        return True
    if pages == (0x21, 0x43) and name.addresses[0] & 15 == 1:
        return True
    holds_addresses = name.name.upper().startswith(("VMADD", "WMADD", "OAMADD", "A1T", "A2A", "DAS"))
    return holds_addresses and pages[0] != pages[1] and (form == "comment" or between.strip() in ("=", ":"))
