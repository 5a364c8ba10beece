"""A linear head on the bare base's states, and its mean with TF-IDF: fitted on this machine for one base.

Kept in the user's cache under the hash of the base's weights, so that it is never used with another base. The states
come from a function that is handed in.
"""

import base64
import binascii
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from afs_mlx.core.config import StrictModel, validate
from afs_mlx.core.errors import AfsError, MissingError
from afs_mlx.core.files import read_json, write_json
from afs_mlx.core.paths import cache_folder
from afs_mlx.experts.routing.calibration import Calibration, softmax
from afs_mlx.experts.routing.features import features
from afs_mlx.experts.routing.learned import States, TfidfRouter, choice, shipped
from afs_mlx.experts.routing.route import Route

if TYPE_CHECKING:
    import numpy as np

    type Floats = np.ndarray[Any, np.dtype[np.float32]]


class FittedHead(StrictModel):
    """A head as it is stored. `weights` are (classes, hidden) float32, little-endian, base64; `bias` has one per class.

    The states are standardised by `mean` and `deviation`, which the weights have taken in already.
    """

    schema_version: int = 1
    base: str
    weights_sha256: str
    layer: int = Field(ge=0)
    hidden: int = Field(ge=1)
    classes: list[str] = Field(min_length=2)
    bias: list[float]
    weights: str
    head: Calibration
    mean: Calibration
    data: list[dict[str, Any]]
    tfidf_sha256: str
    figures: dict[str, Any]
    provenance: dict[str, Any]


class Head:
    """Scores states for every class."""

    def __init__(self, fitted: FittedHead, where: str) -> None:
        import numpy as np

        try:
            raw = base64.b64decode(fitted.weights, validate=True)
            self._weights: Floats = np.frombuffer(raw, "<f4").reshape(len(fitted.classes), fitted.hidden)
        except (binascii.Error, ValueError) as error:
            raise AfsError(f"the head's weights do not fit: {error}", where, _fix(fitted.base)) from error
        if len(fitted.bias) != len(fitted.classes) or not np.isfinite(self._weights).all():
            raise AfsError("the head's weights are damaged", where, _fix(fitted.base))
        self.fitted = fitted
        self.classes = tuple(fitted.classes)

    def logits(self, states: Sequence[Sequence[float]]) -> list[list[float]]:
        """One row of unscaled scores for each state."""
        import numpy as np

        found = np.asarray(states, np.float32)
        if found.ndim != 2 or found.shape[1] != self.fitted.hidden:
            raise AfsError(f"states of shape {found.shape}, not (n, {self.fitted.hidden})", "router", "fit it again")
        rows: list[list[float]] = (found @ self._weights.T + np.asarray(self.fitted.bias, np.float32)).tolist()
        return rows


class HeadRouter:
    """Routes by the states alone."""

    name = "head"

    def __init__(self, head: Head, states: States) -> None:
        self._head = head
        self._states = states
        self.calibration = head.fitted.head
        self.classes = head.classes

    @property
    def switch_threshold(self) -> float:
        return self.calibration.switch_threshold

    def routes(self, queries: Sequence[str]) -> list[Route]:
        """One route for each query."""
        if not queries:
            return []
        rows = self._head.logits(self._states(queries))
        return [choice(self.classes, softmax(row, self.calibration.temperature), self.calibration) for row in rows]


class MeanRouter:
    """Routes by the mean of both routers' probabilities; its temperature and thresholds are its own."""

    name = "mean"

    def __init__(self, tfidf: TfidfRouter, head: Head, states: States) -> None:
        self._tfidf = tfidf
        self._head = head
        self._states = states
        self.calibration = head.fitted.mean
        self.classes = head.classes

    @property
    def switch_threshold(self) -> float:
        return self.calibration.switch_threshold

    def routes(self, queries: Sequence[str]) -> list[Route]:
        """One route for each query; the words are those of TF-IDF, which alone has words."""
        if not queries:
            return []
        heads = self._head.logits(self._states(queries))
        words = [route.words for route in self._tfidf.routes(queries)]
        texts = [self._tfidf.model.logits(features(query)) for query in queries]
        return [
            choice(self.classes, self._mean(text, head), self.calibration, shown)
            for text, head, shown in zip(texts, heads, words, strict=True)
        ]

    def _mean(self, text: Sequence[float], head: Sequence[float]) -> list[float]:
        return softmax(mean_scores(text, head), self.calibration.temperature)


def mean_scores(text: Sequence[float], head: Sequence[float]) -> list[float]:
    """The logarithms of the mean of both probabilities: the scores that the mean's temperature divides."""
    pairs = zip(softmax(text), softmax(head), strict=True)
    return [math.log(max((a + b) / 2, 1e-12)) for a, b in pairs]


def head_file(weights_sha256: str) -> Path:
    """Where the head for a base lies."""
    return cache_folder() / "routers" / f"{weights_sha256}.json"


def save_head(fitted: FittedHead) -> Path:
    """Write a head to its place."""
    path = head_file(fitted.weights_sha256)
    write_json(path, fitted.model_dump(mode="json"))
    return path


def load_head(weights_sha256: str, base: str, tfidf_sha256: str) -> Head:
    """The head that was fitted for these weights; `base` is their name, `tfidf_sha256` the hash of the shipped router.

    Raises MissingError with the command that fits one, also where the shipped router has changed since: the mean's
    thresholds are for both together.
    """
    path = head_file(weights_sha256)
    if not path.is_file():
        raise MissingError(f"no head was fitted for {base} on this machine", str(path), _fix(base))
    fitted = validate(FittedHead, read_json(path, "the router's head"), str(path))
    if fitted.weights_sha256 != weights_sha256:
        raise AfsError("the head is for other weights than its name says", str(path), _fix(base))
    if fitted.tfidf_sha256 != tfidf_sha256 or tuple(fitted.classes) != shipped().classes:
        raise MissingError("the head was fitted beside an earlier TF-IDF router", str(path), _fix(base))
    return Head(fitted, str(path))


def _fix(base: str) -> str:
    return f"afs-mlx route train --base {base}"
