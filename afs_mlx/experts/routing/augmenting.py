"""What a router is fitted on beside the labelled queries: the same with slips of the keys, and the experts' keywords.

Neither is ever validated on. Slips depend on the query alone, so that the same rows give the same model.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from afs_mlx.experts.routing.assembly import split
from afs_mlx.experts.routing.features import Features, features
from afs_mlx.experts.routing.rows import LabelledQuery

TYPO_WEIGHT = 0.5
KEYWORD_WEIGHT = 0.4
_SLIP_SHARE = 0.35  # of the words long enough to be mistyped
_SHORTEST_WORD = 5
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_INLINE = "rep #$20 lda $10 sta $12"
_CODE = "\n    lda $10\n    clc\n    adc $12\n    sta $10\n    rts"


@dataclass(frozen=True)
class Sample:
    """One text to fit on. `group` counts once towards what a token is seen in, `weight` is 1 for a labelled query."""

    found: Features
    expert: str
    group: str
    weight: float = 1.0


@dataclass(frozen=True)
class Samples:
    """The samples of each row, the row's own first, and those that belong to none."""

    of_rows: list[list[Sample]]
    others: list[Sample]

    def without(self, held_out: set[int]) -> list[Sample]:
        """All samples but those of some rows."""
        kept = [sample for n, samples in enumerate(self.of_rows) if n not in held_out for sample in samples]
        return kept + self.others


def samples_of(rows: Sequence[LabelledQuery], keywords: Mapping[str, Sequence[str]]) -> Samples:
    """Each query as it is and mistyped; each keyword alone, with what it may be about, and above code."""
    of_rows = [
        [
            Sample(features(row.query), row.expert, row.held_together),
            Sample(features(mistyped(row.query)), row.expert, row.held_together, TYPO_WEIGHT),
        ]
        for row in rows
    ]
    others = [
        Sample(features(text), expert, f"keywords of {expert}", KEYWORD_WEIGHT)
        for expert, words in keywords.items()
        for word in words
        for text in (
            word,
            f"{word} this",
            f"{word} this code",
            f"{word} my routine",
            f"{word} this loop{_CODE}",
            f"{word} this: {_INLINE}",
        )
    ]
    return Samples(of_rows, others)


def mistyped(query: str) -> str:
    """The query with slips in some of its longer words; lines of code stay."""
    chance = random.Random(f"typos:{query}")
    return "\n".join(line if split(line).code else _slips(line, chance) for line in query.split("\n"))


def _slips(line: str, chance: random.Random) -> str:
    return " ".join(
        _slip(word, chance)
        if len(word) >= _SHORTEST_WORD and word.isalpha() and chance.random() < _SLIP_SHARE
        else word
        for word in line.split(" ")
    )


def _slip(word: str, chance: random.Random) -> str:
    """A letter left out, swapped with the next, doubled, or another; never the first."""
    at = chance.randrange(1, len(word) - 1)
    before, letter, after = word[:at], word[at], word[at + 1 :]
    forms = (before + after, before + after[0] + letter + after[1:], before + 2 * letter + after)
    kind = chance.randrange(4)
    return forms[kind] if kind < len(forms) else before + chance.choice(_LETTERS) + after
