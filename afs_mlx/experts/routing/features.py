"""A message as counted tokens in three blocks: words and pairs of words, letter groups, and signs.

`words` are unigrams and bigrams of the running text with registers, numbers, files and code folded; `letters` are 3 to
5 letters within a word, which survive a typo; `signs` are cues (cues.toml), what the code is made of, registers, how
the message begins and ends, and other processors' words. Learns nothing and weighs nothing.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from afs_mlx.experts.routing import cues
from afs_mlx.experts.routing.assembly import instructions
from afs_mlx.experts.routing.foreign import foreign_signs
from afs_mlx.experts.routing.reading import Message, Term, read
from afs_mlx.snes.registers.wording import words_of

BLOCKS = ("words", "letters", "signs")
GRAM_SIZES = (3, 4, 5)
_GRAM_WORD = 20
# What people begin a request with before they say what it is.
_POLITE = words_of(
    "please pls plz can could would will you u hey hi hello so ok okay and now then also well im i id we want need to "
    "me my a an the this that some just help bitte kannst konntest du mir por favor puedes peux tu pourrais"
)
_STRENGTH = {"phrase": "+", "word": "", "typo": "~"}
_SURELY_OF_THE_SNES = ("cue snes.chip", "cue snes.cpu", "mn", "reg", "addr", "file")
_OF_THE_SNES = (*_SURELY_OF_THE_SNES, "cue snes")
_INTENTS = frozenset({"measure", "improve", "broken", "make", "understand", "act", "elsewhere"})


@dataclass(frozen=True)
class Features:
    """Counted tokens by block; `terms` are the ordinary words, in order, that the letter groups come from.

    `said` is what of the message is a cue, by the cue's name and by its family.
    """

    blocks: dict[str, Counter[str]]
    terms: tuple[str, ...]
    is_cut: bool
    said: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def features(text: str) -> Features:
    """The tokens of any text; at most `2 * END_CHARS` characters of it are read."""
    message = read(text)
    ordinary = tuple(term.text for term in message.terms if not term.sign)
    found = cues.found_in(message.terms)
    blocks = {"words": _words(message.terms), "letters": _letters(ordinary), "signs": _signs(message, found)}
    said: dict[str, dict[str, None]] = {}
    for cue in found:
        for name in (cue.name, cue.family):
            said.setdefault(name, {})[cue.text] = None
    return Features(blocks, ordinary, message.is_cut, {name: tuple(texts) for name, texts in said.items()})


def grams(word: str) -> list[str]:
    """The letter groups of a word, its ends marked by spaces."""
    marked = f" {word[:_GRAM_WORD]} "
    return [marked[i : i + size] for size in GRAM_SIZES for i in range(len(marked) - size + 1)]


def _words(terms: Sequence[Term]) -> Counter[str]:
    folded = [term.folded for term in terms if term.sign not in ("?", "!")]
    counted = Counter(folded)
    counted.update(f"{a} {b}" for a, b in zip(["^", *folded], [*folded, "$"], strict=True))
    return counted


def _letters(words: Sequence[str]) -> Counter[str]:
    counted: Counter[str] = Counter()
    for word, times in Counter(words).items():
        for gram in grams(word):
            counted[gram] += times
    return counted


def _signs(message: Message, found: Sequence[cues.Cue]) -> Counter[str]:
    terms, parts = message.terms, message.parts
    counted: Counter[str] = Counter()
    has_code = bool(parts.code) or any(term.sign == "_insn" for term in terms)
    _count_code(counted, message)
    for term in terms:
        if term.sign == "_reg":
            counted["reg"] += 1
            counted[f"reg:{term.detail}"] += 1
        elif term.sign in ("_mn", "_file", "_path", "_url", "_addr", "_insn"):
            counted[term.sign.strip("_")] += 1
    _count_cues(counted, found, has_code)
    words = [term for term in terms if term.sign not in ("?", "!")]
    for place, term in enumerate(terms):
        if term.sign in ("?", "!"):
            counted[term.sign] = 1
            if place == len(terms) - 1:
                counted[f"ends {term.sign}"] = 1
    counted[f"length {_bucket(len(words), (0, 1, 3, 6, 12, 25, 60))}"] = 1
    for name in foreign_signs(message.text, [term.text for term in terms]):
        counted[name] += 1
    first = next((term.folded for term in words[:8] if term.text not in _POLITE), "")
    counted[f"first {first}"] = 1
    if has_code:
        counted[f"first {first} + code"] = 1
    return counted


def _count_cues(counted: Counter[str], found: Sequence[cues.Cue], has_code: bool) -> None:
    beside = "code" if has_code else "no code"
    seen: list[cues.Cue] = []
    for cue in found:
        counted[f"cue {cue.name}{_STRENGTH[cue.how]}"] += 1
        if cue.family in _INTENTS:
            seen.append(cue)
    for family in {cue.family for cue in seen}:
        counted[f"cue {family}, {beside}"] = 1
    for name in {cue.name for cue in seen if cue.how != "typo"}:
        counted[f"cue {name}, {beside}"] = 1
    if seen:
        counted[f"first cue {seen[0].family}"] = 1
        counted[f"last cue {seen[-1].family}"] = 1
    else:
        counted[f"no cue, {beside}"] = 1
    if not has_code:
        named = [name for name in counted if name.startswith(_OF_THE_SNES)]
        if not any(name.startswith(_SURELY_OF_THE_SNES) for name in named):
            counted["little of the SNES" if named else "nothing of the SNES"] = 1
            if not named and any(cue.family == "elsewhere" for cue in seen):
                counted["only of elsewhere"] = 1


def _count_code(counted: Counter[str], message: Message) -> None:
    parts = message.parts
    inline = [term.detail for term in message.terms if term.sign == "_insn"]
    for line in (*parts.code, *inline):
        for mnemonic, shape in instructions(line):
            counted[f"op {mnemonic}"] += 1
            if shape:
                counted[f"mode {shape}"] += 1
    for fence in parts.fences:
        counted[f"fence {fence}"] += 1
    if parts.code:
        counted["code"] = 1
        counted[f"lines {_bucket(len(parts.code), (1, 2, 5, 10, 20, 40))}"] = 1
        has_prose = any(char.isalpha() for char in parts.prose)
        counted["code and text" if has_prose else "only code"] = 1
        if parts.comments:
            counted["comments"] = 1
        beside = next((term for term in message.terms if term.sign == "_block"), None)
        if beside is message.terms[0]:
            counted["code first"] = 1
    elif inline:
        counted["code inside"] = 1


def _bucket(number: int, bounds: Sequence[int]) -> int:
    return next((bound for bound in bounds if number <= bound), bounds[-1] + 1)
