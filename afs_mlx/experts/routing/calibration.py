"""From scores to probabilities that can be believed, and from those to a choice or to none.

The temperature and both thresholds are chosen on queries that the model was not fitted on. Knows no features.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from pydantic import Field

from afs_mlx.core.config import StrictModel
from afs_mlx.experts.routing.route import FALLBACK

ECE_BINS = 10


class Calibration(StrictModel):
    """What turns a model's scores into a choice.

    A query goes to the likeliest expert where its probability reaches `route_threshold` and that of `general`: on the
    validation queries at most `wrong_rate` of those sent to an expert were sent to a wrong one. `switch_threshold` is
    the same for `switch_wrong_rate`, and is asked of an expert who is to take over a conversation.
    """

    temperature: float = Field(gt=0)
    route_threshold: float = Field(ge=0, le=1)
    switch_threshold: float = Field(ge=0, le=1)
    wrong_rate: float = Field(ge=0, le=1)
    switch_wrong_rate: float = Field(ge=0, le=1)


def softmax(scores: Sequence[float], temperature: float = 1.0) -> list[float]:
    """Probabilities of unscaled scores; a higher temperature makes them more alike."""
    most = max(scores)
    shares = [math.exp((score - most) / temperature) for score in scores]
    whole = sum(shares)
    return [share / whole for share in shares]


def log_loss(rows: Sequence[Sequence[float]], labels: Sequence[int], temperature: float) -> float:
    """The mean negative log-likelihood of the labels."""
    return -sum(
        math.log(max(softmax(row, temperature)[label], 1e-12)) for row, label in zip(rows, labels, strict=True)
    ) / len(rows)


def fit_temperature(rows: Sequence[Sequence[float]], labels: Sequence[int]) -> float:
    """The temperature with the smallest log loss (Guo et al., 2017), by golden-section search in its logarithm."""
    low, high = math.log(0.05), math.log(20.0)
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(40):
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        if log_loss(rows, labels, math.exp(a)) < log_loss(rows, labels, math.exp(b)):
            high = b
        else:
            low = a
    return round(math.exp((low + high) / 2), 4)


@dataclass(frozen=True)
class Guess:
    """The likeliest expert of a query with its probability, and whether it is the right one."""

    confidence: float
    is_right: bool


def guesses(classes: Sequence[str], rows: Sequence[Sequence[float]], wanted: Sequence[str]) -> list[Guess]:
    """The likeliest class of each row of probabilities, without the rows where that is `general`: those go there."""
    likeliest = [max(zip(row, classes, strict=True)) for row in rows]
    return [
        Guess(confidence, best == name)
        for (confidence, best), name in zip(likeliest, wanted, strict=True)
        if best != FALLBACK
    ]


def threshold_for(found: Sequence[Guess], wrong_rate: float) -> float:
    """The lowest threshold above which at most `wrong_rate` of the guesses are wrong, all of them counted from the top.

    1 when even the surest guesses are wrong more often.
    """
    ranked = sorted(found, key=lambda guess: -guess.confidence)
    best, wrong = 1.0, 0
    for number, (guess, after) in enumerate(pairwise([*ranked, Guess(0.0, False)]), start=1):
        wrong += not guess.is_right
        # Guesses of the same confidence stand or fall together.
        if wrong <= wrong_rate * number and after.confidence < guess.confidence:
            best = (guess.confidence + after.confidence) / 2 if number < len(ranked) else 0.0
    return round(best, 4)


def expected_calibration_error(confidences: Sequence[float], right: Sequence[bool], bins: int = ECE_BINS) -> float:
    """How far confidence and accuracy lie apart, averaged over bins of equal width weighed by their queries."""
    sums: dict[int, list[float]] = {}
    for confidence, is_right in zip(confidences, right, strict=True):
        entry = sums.setdefault(min(bins - 1, int(confidence * bins)), [0.0, 0.0])
        entry[0] += confidence
        entry[1] += is_right
    return sum(abs(total - hits) for total, hits in sums.values()) / len(confidences) if confidences else 0.0
