"""A message as a list of terms: words folded to plain small letters, registers, numbers, files and code to signs.

Reads the first and the last `END_CHARS` characters of a longer message: a question stands before or after its code.
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from afs_mlx.experts.routing.assembly import BLOCK, INSTRUCTION, ORDINARY_WORDS, Split, split
from afs_mlx.snes.mnemonics import SHAPES
from afs_mlx.snes.registers.table import by_name, name_of

END_CHARS = 3000
_LONGEST_WORD = 32
_CONTROLS = dict.fromkeys((*range(9), 11, 12, *range(14, 32), 127), " ")
_QUOTES = {**dict.fromkeys(map(ord, "’‘ʼ´"), "'"), **dict.fromkeys(map(ord, "“”„«»"), '"'), 0xA0: " "}
_PLAIN = str.maketrans({**_CONTROLS, **_QUOTES})
_ENDINGS = (
    "asm|s|inc|i65|a65|c|h|cpp|py|rs|js|ts|go|java|lua|txt|md|rst|json|jsonl|toml|yaml|yml|ini|cfg|csv|xml|html|sh|log|"
    "bin|rom|sfc|smc|ips|bps|chr|pal|map|tmx|png|bmp|brr|spc|it|lst|sym|mlb|dbg|lnk|zip|bak|diff|patch"
)
_TERM = re.compile(
    rf"(?P<block>{BLOCK})|(?P<url>https?://\S+)"
    rf"|(?P<file>(?<![\w$])(?:~?[\w.-]{{0,40}}/){{0,8}}[\w*-][\w.*-]{{0,60}}\.(?:{_ENDINGS})\b|\bmakefile\b)"
    r"|(?P<path>(?<![\w$])(?:~|\.{1,2})?/[\w.-]{1,40}(?:/[\w.*-]{1,40}){0,8}/?|(?<![\w$/])[\w.-]{1,40}/(?!\w)"
    r"|\b[\w.-]{1,40}/[\w.-]{1,40}/[\w./-]{1,80})"
    r"|(?P<hex>\$[0-9a-f]{1,6}(?:[:/][0-9a-f]{4})?\b|\b0x[0-9a-f]+\b|\b[0-9a-f]{2}:[0-9a-f]{4}\b|\$43x[0-9a-f])"
    r"|(?P<number>%[01]{2,}\b|\d+(?:[.,]\d+)*\w*)|(?P<word>[^\W\d_][\w']*)|(?P<sign>[?!])",
    re.I,
)
# Register names that are also words: only in capitals do they name the register.
_ALSO_WORDS = frozenset({"mosaic", "tm", "ts", "das", "mpy"})


@dataclass(frozen=True)
class Term:
    """One word of a message. `text` is plain and small; `sign` is what it is folded to, empty for an ordinary word.

    `detail` names a register, an instruction or a mnemonic.
    """

    text: str
    sign: str = ""
    detail: str = ""

    @property
    def folded(self) -> str:
        return self.sign or self.text


@dataclass(frozen=True)
class Message:
    """What was read of a message; `terms` are those of the running text, or of the comments where there is none."""

    text: str
    parts: Split
    terms: tuple[Term, ...]
    is_cut: bool


def read(text: str) -> Message:
    """Split and fold a message. Any text will do: empty, binary, or of any length."""
    is_cut = len(text) > 2 * END_CHARS
    shown = f"{text[:END_CHARS]}\n{text[-END_CHARS:]}" if is_cut else text
    shown = shown.replace("\r\n", "\n").replace("\r", "\n").translate(_PLAIN)
    parts = split(shown)
    prose = parts.prose
    if not any(char.isalpha() for char in prose):
        prose = f"{prose}\n{parts.comments}"  # a comment speaks where nothing else does
    return Message(shown, parts, tuple(_terms(prose)), is_cut)


def _terms(prose: str) -> list[Term]:
    is_loud = prose.isupper()
    terms: list[Term] = []
    end = 0
    # Instructions inside a sentence first: their operands are no words.
    for found in INSTRUCTION.finditer(prose):
        terms += _plain_terms(prose[end : found.start()], is_loud)
        terms.append(Term(found[0].lower(), "_insn", found[0]))
        end = found.end()
    return terms + _plain_terms(prose[end:], is_loud)


def _plain_terms(text: str, is_loud: bool) -> list[Term]:
    terms: list[Term] = []
    for found in _TERM.finditer(text):
        kind, value = str(found.lastgroup), found[0]
        if kind == "word":
            terms += [term for word in _parted(value) if (term := _word(word, is_loud))]
        elif kind == "hex":
            terms.append(_address(value.lower()))
        elif kind == "sign":
            terms.append(Term(value, value))
        else:
            terms.append(Term(value.lower()[:_LONGEST_WORD], "_num" if kind == "number" else f"_{kind}"))
    return terms


def _parted(word: str) -> list[str]:
    """`don't` stays one word; `l'écran` and `j'ai` are two."""
    head, quote, tail = word.partition("'")
    if quote and tail and len(head) <= 2 and head.lower() in {"l", "d", "j", "n", "s", "c", "m", "t", "qu"}:
        return [head, tail.replace("'", "")]
    return [word.replace("'", "")]


def _word(word: str, is_loud: bool) -> Term | None:
    plain = folded(word)[:_LONGEST_WORD]
    if not plain:
        return None
    is_capital = word.isupper() and len(word) > 1 and not is_loud
    if plain in SHAPES and (is_capital or plain not in ORDINARY_WORDS):
        return Term(plain, "_mn", plain)
    if (plain not in _ALSO_WORDS or is_capital) and (name := _register(plain)):
        return Term(plain, "_reg", name)
    return Term(plain)


@lru_cache(maxsize=4096)
def _register(word: str) -> str:
    found = by_name(word) if 2 < len(word) < 12 or word in _ALSO_WORDS else ()
    return found[0].name if found else ""


def _address(value: str) -> Term:
    digits = value.removeprefix("$").removeprefix("0x").replace(":", "").replace("/", "")
    if len(digits) in (4, 6):
        if digits[2:3] == "x":
            return Term(value, "_reg", "DMA")
        name = name_of(int(digits, 16))
        if name:
            return Term(value, "_reg", name)
    return Term(value, "_dp" if len(digits) <= 2 else "_addr")


def folded(word: str) -> str:
    """Small letters without accents: `Größe` is `grosse`, `¿Qué` is `que`."""
    small = word.casefold()
    if small.isascii():
        return small
    parts = unicodedata.normalize("NFKD", small[:_LONGEST_WORD])
    return "".join(char for char in parts if not unicodedata.combining(char))
