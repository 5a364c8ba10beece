"""What the learned routers share: calibrated probabilities become a route or, where they are not sure, `general`."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from afs_mlx.core.config import StrictModel, validate
from afs_mlx.core.files import read_json
from afs_mlx.experts.routing import explaining
from afs_mlx.experts.routing.calibration import Calibration, softmax
from afs_mlx.experts.routing.features import Features, features
from afs_mlx.experts.routing.model import TfidfModel, load
from afs_mlx.experts.routing.route import FALLBACK, Route

HERE = Path(__file__).parent
MODEL_FILE = "tfidf.json"
MANIFEST_FILE = "tfidf.manifest.json"
_SHOWN_WORDS = 8

type States = Callable[[Sequence[str]], Sequence[Sequence[float]]]


class Manifest(StrictModel):
    """Where the shipped router comes from, how it decides, and what its validation said."""

    calibration: Calibration
    data: list[dict[str, Any]]
    experts: dict[str, int]
    keywords: dict[str, list[str]]
    model: dict[str, Any]
    made_by: str
    folds: int
    settings: dict[str, Any]
    figures: dict[str, Any]


def choice(
    classes: Sequence[str],
    probabilities: Sequence[float],
    calibration: Calibration,
    words: Sequence[tuple[str, float]] = (),
    note: str = "",
) -> Route:
    """The route for one query's calibrated probabilities."""
    ranked = sorted(zip(probabilities, classes, strict=True), reverse=True)
    scores = {name: round(probability, 4) for probability, name in ranked}
    (first, best), (second, next_best) = ranked[0], ranked[1]
    why = ", ".join(word for word, weight in words[:3] if weight > 0)
    if best == FALLBACK:
        expert, reason = FALLBACK, f"a question for none of the experts ({first:.2f}; next {next_best} {second:.2f})"
    elif first < calibration.route_threshold:
        asked = calibration.route_threshold
        expert, reason = (
            FALLBACK,
            f"not sure enough: {best} {first:.2f} of the {asked:.2f} asked for, {next_best} {second:.2f}",
        )
    else:
        expert, reason = best, f"{best} {first:.2f}, next {next_best} {second:.2f}"
    reason += (f"; {why}" if why else "") + (f"; {note}" if note else "")
    return Route(expert, scores[expert], scores, reason, tuple(words), round(first - second, 4), best)


class TfidfRouter:
    """The shipped default: needs no model of any kind in memory."""

    name = "tfidf"

    def __init__(self, model: TfidfModel, calibration: Calibration) -> None:
        self.model = model
        self.calibration = calibration

    @property
    def switch_threshold(self) -> float:
        return self.calibration.switch_threshold

    @property
    def classes(self) -> tuple[str, ...]:
        return self.model.classes

    def routes(self, queries: Sequence[str]) -> list[Route]:
        """One route for each query."""
        return [self._route(features(query)) for query in queries]

    def _route(self, found: Features) -> Route:
        classes = self.model.classes
        probabilities = softmax(self.model.logits(found), self.calibration.temperature)
        first, second = sorted(range(len(classes)), key=lambda n: -probabilities[n])[:2]
        parts = self.model.contributions(found, classes[first], classes[second])
        note = "only the beginning and the end of it were read" if found.is_cut else ""
        return choice(classes, probabilities, self.calibration, explaining.words(parts, _SHOWN_WORDS, found.said), note)


@cache
def shipped() -> TfidfRouter:
    """The router that comes with the package, read once."""
    return TfidfRouter(load(HERE / MODEL_FILE), shipped_manifest().calibration)


def shipped_manifest() -> Manifest:
    """What is recorded of it."""
    path = HERE / MANIFEST_FILE
    return validate(Manifest, read_json(path, "the router's manifest"), str(path))
