"""Words and phrases that tell what a message wants: reads cues.toml, finds them in terms, also with one typo."""

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from afs_mlx.experts.routing.reading import Term, folded

_LONGEST_PHRASE = 4
_SHORTEST_STEM = 3
_SHORTEST_TYPO = 5  # a shorter word with a letter wrong may be any word


@dataclass(frozen=True)
class Cue:
    """One find: `name` is `family.kind`, `place` the term, `text` its words; a phrase is stronger, a guess weaker."""

    name: str
    place: int
    how: str
    text: str

    @property
    def family(self) -> str:
        return self.name.partition(".")[0]


@dataclass(frozen=True)
class _Cues:
    words: dict[str, tuple[str, ...]]
    stems: dict[str, tuple[str, ...]]
    phrases: dict[str, tuple[str, ...]]
    inside: dict[str, tuple[str, ...]]
    near: dict[str, tuple[str, ...]]


def found_in(terms: Sequence[Term]) -> list[Cue]:
    """Every cue in the order of the text."""
    cues = _cues()
    texts = [term.text for term in terms]
    found: list[Cue] = []
    for place, term in enumerate(terms):
        for size in range(2, _LONGEST_PHRASE + 1):
            phrase = " ".join(texts[place : place + size])
            found += [Cue(name, place, "phrase", phrase) for name in cues.phrases.get(phrase, ())]
        names = _of_word(term.text, cues)
        found += [Cue(name, place, "word", term.text) for name in names]
        if not names and not term.sign and len(term.text) >= _SHORTEST_TYPO:
            found += [Cue(name, place, "typo", term.text) for name in _of_typo(term.text, cues)]
    return found


def _of_word(word: str, cues: _Cues) -> list[str]:
    names = dict.fromkeys(cues.words.get(word, ()))
    for size in range(_SHORTEST_STEM, len(word) + 1):
        names |= dict.fromkeys(cues.stems.get(word[:size], ()))
    if not word.isascii():
        names |= dict.fromkeys(name for part, found in cues.inside.items() if part in word for name in found)
    return list(names)


def _of_typo(word: str, cues: _Cues) -> list[str]:
    """The cues of words that differ by a letter too many, too few, another, or two swapped."""
    return list(dict.fromkeys(name for form in (word, *_shortened(word)) for name in cues.near.get(form, ())))


def _shortened(word: str) -> Iterator[str]:
    """The word without each of its letters; two words with one of these in common differ by one slip."""
    # The first letter is nearly always right.
    return (word[:place] + word[place + 1 :] for place in range(1, len(word)))


@cache
def _cues() -> _Cues:
    tables = tomllib.loads(resources.files(__package__).joinpath("cues.toml").read_text(encoding="utf-8"))
    words: dict[str, set[str]] = {}
    stems: dict[str, set[str]] = {}
    phrases: dict[str, set[str]] = {}
    inside: dict[str, set[str]] = {}
    near: dict[str, set[str]] = {}
    for family, kinds in tables.items():
        for kind, table in kinds.items():
            name = f"{family}.{kind}"
            for word in table["words"].split():
                target = stems if word.endswith("*") else words
                target.setdefault(folded(word.rstrip("*")), set()).add(name)
            for phrase in table.get("phrases", "").replace("\n", " | ").split("|"):
                if text := " ".join(folded(word) for word in phrase.split()):
                    phrases.setdefault(text, set()).add(name)
            for part in table.get("inside", "").split():
                inside.setdefault(folded(part), set()).add(name)
    for word, names in words.items():
        if len(word) >= _SHORTEST_TYPO and word.isascii():
            for form in (word, *_shortened(word)):
                near.setdefault(form, set()).update(names)
    sorted_names = (
        {text: tuple(sorted(found)) for text, found in kind.items()} for kind in (words, stems, phrases, inside, near)
    )
    return _Cues(*sorted_names)
