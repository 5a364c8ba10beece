"""TF-IDF and logistic regression from plain arrays: no scikit-learn, no numpy, no pickle.

Each block of tokens is weighed by (1 + log count) · idf, brought to length 1 and multiplied by the block's weight.
Weights are kept as 8-bit integers with one scale for each class. Tokens that the model has not seen count for nothing.
"""

import base64
import binascii
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from afs_mlx.core.config import StrictModel, validate
from afs_mlx.core.errors import AfsError
from afs_mlx.core.files import read_json, write_text
from afs_mlx.experts.routing.features import Features, grams

_AGAIN = "install afs-mlx again, or make the file again with data/make_router.py"


@dataclass(frozen=True)
class Block:
    """The known tokens of a block: their rows in the weights and their inverse document frequencies."""

    name: str
    weight: float
    rows: dict[str, int]
    idf: Sequence[float]


class _StoredBlock(StrictModel):
    name: str
    weight: float = Field(gt=0)
    tokens: list[str]
    seen_in: list[int]


class _Stored(StrictModel):
    schema_version: int
    classes: list[str] = Field(min_length=2)
    documents: int = Field(ge=1)
    bias: list[float]
    scales: list[float]
    blocks: list[_StoredBlock]
    weights: str


class TfidfModel:
    """Scores a text for every class. `weights` is row-major: token after token, one number for each class."""

    def __init__(
        self,
        classes: Sequence[str],
        bias: Sequence[float],
        blocks: Sequence[Block],
        scales: Sequence[float],
        weights: "array[int]",
    ) -> None:
        self.classes = tuple(classes)
        self.bias = tuple(bias)
        self.blocks = tuple(blocks)
        self.scales = tuple(scales)
        self.weights = weights
        self._first_rows = [sum(len(block.rows) for block in self.blocks[:n]) for n in range(len(self.blocks))]

    def logits(self, found: Features) -> list[float]:
        """One unscaled score for each class."""
        count, weights = len(self.classes), self.weights
        sums = [0.0] * count
        for row, value, _, _ in self.values(found):
            start = row * count
            for place in range(count):
                sums[place] += value * weights[start + place]
        return [b + s * scale for b, s, scale in zip(self.bias, sums, self.scales, strict=True)]

    def contributions(self, found: Features, first: str, second: str) -> list[tuple[str, str, float]]:
        """(block, token, weight): how much each token speaks for one class against another.

        Letter groups are added up under the word that they stand in.
        """
        places = [self.classes.index(name) for name in (first, second)]
        count = len(self.classes)
        words: dict[str, float] = {}
        result: list[tuple[str, str, float]] = []
        of_grams: dict[str, float] = {}
        for row, value, block, token in self.values(found):
            a, b = (self.weights[row * count + place] * self.scales[place] for place in places)
            if block == "letters":
                of_grams[token] = value * (a - b) / found.blocks["letters"][token]
            else:
                result.append((block, token, value * (a - b)))
        for word in found.terms:
            words[word] = words.get(word, 0.0) + sum(of_grams.get(gram, 0.0) for gram in grams(word))
        return result + [("letters", word, weight) for word, weight in words.items()]

    def values(self, found: Features) -> list[tuple[int, float, str, str]]:
        """(row, value, block, token) of every known token."""
        result: list[tuple[int, float, str, str]] = []
        for block, first_row in zip(self.blocks, self._first_rows, strict=True):
            known = [
                (place, (1 + math.log(times)) * block.idf[place], token)
                for token, times in found.blocks[block.name].items()
                if (place := block.rows.get(token)) is not None
            ]
            length = math.sqrt(sum(value * value for _, value, _ in known))
            result += [(first_row + at, value * block.weight / length, block.name, token) for at, value, token in known]
        return result


def idf(documents: int, seen_in: int) -> float:
    """The smoothed inverse document frequency: log((1 + n) / (1 + df)) + 1, as scikit-learn's."""
    return math.log((1 + documents) / (1 + seen_in)) + 1


def save(path: Path, model: TfidfModel, documents: int, seen_in: dict[str, list[int]]) -> None:
    """Write the model as JSON, the same bytes for the same model."""
    import json

    stored = {
        "schema_version": 1,
        "classes": list(model.classes),
        "documents": documents,
        "bias": [round(value, 6) for value in model.bias],
        "scales": [float(f"{value:.6g}") for value in model.scales],
        "blocks": [
            {"name": b.name, "weight": b.weight, "tokens": list(b.rows), "seen_in": seen_in[b.name]}
            for b in model.blocks
        ],
        "weights": base64.b64encode(model.weights.tobytes()).decode("ascii"),
    }
    write_text(path, json.dumps(stored, ensure_ascii=False, separators=(",", ":")) + "\n")


def load(path: Path) -> TfidfModel:
    """Read a model; raises AfsError when its parts do not fit together."""
    raw: dict[str, Any] = read_json(path, "the router's model")
    stored = validate(_Stored, raw, str(path))
    try:
        weights = array("b", base64.b64decode(stored.weights, validate=True))
    except (binascii.Error, ValueError) as error:
        raise AfsError(f"the weights are not base64: {error}", str(path), _AGAIN) from error
    count = len(stored.classes)
    tokens = sum(len(block.tokens) for block in stored.blocks)
    fits = (
        stored.schema_version == 1
        and len(stored.bias) == len(stored.scales) == count
        and len(weights) == tokens * count
        and all(len(block.tokens) == len(block.seen_in) for block in stored.blocks)
    )
    if not fits:
        raise AfsError("the parts of the router's model do not fit together", str(path), _AGAIN)
    logs = [idf(stored.documents, times) for times in range(stored.documents + 1)]
    try:
        blocks = [
            Block(b.name, b.weight, {t: n for n, t in enumerate(b.tokens)}, [logs[times] for times in b.seen_in])
            for b in stored.blocks
        ]
    except IndexError as error:
        raise AfsError("a token stands in more texts than there are", str(path), _AGAIN) from error
    return TfidfModel(stored.classes, stored.bias, blocks, stored.scales, weights)
