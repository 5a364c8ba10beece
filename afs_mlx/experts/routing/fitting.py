"""Fits the learned routers with scikit-learn, which nothing else needs. Everything is validated fold by fold.

A row is only ever judged by a model that saw no row of its group; what is kept of the folds are those judgements, from
which settings, temperature and thresholds are chosen. The model that is kept is then fitted on all rows.
"""

import importlib
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from afs_mlx.core.errors import AfsError, MissingError
from afs_mlx.experts.routing.augmenting import Sample, Samples
from afs_mlx.experts.routing.calibration import (
    Calibration,
    expected_calibration_error,
    fit_temperature,
    guesses,
    log_loss,
    softmax,
    threshold_for,
)
from afs_mlx.experts.routing.features import BLOCKS
from afs_mlx.experts.routing.model import Block, TfidfModel, idf
from afs_mlx.experts.routing.route import FALLBACK
from afs_mlx.experts.routing.rows import FOLDS, LabelledQuery, fold_of

if TYPE_CHECKING:
    import numpy as np

    type Floats = np.ndarray[Any, np.dtype[np.float64]]

# Thresholds are set by the share of validation queries that are sent to a wrong expert: the lowest whole percent at
# which so many of those in scope are sent at all. A running conversation asks for less before it changes hands.
COVERAGE = 0.9
SWITCH_WRONG_RATE = 0.1
_LARGEST = 127  # of a signed byte


@dataclass(frozen=True)
class Settings:
    """What is chosen by validation: the blocks' weights, how many groups must know a token, and the regularisation."""

    words: float = 1.0
    letters: float = 1.0
    signs: float = 1.0
    least_groups: int = 2
    inverse_regularisation: float = 6.0

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each block that takes part."""
        return {name: weight for name in BLOCKS if (weight := getattr(self, name)) > 0}


@dataclass(frozen=True)
class Fitted:
    """A model with what is needed to store it."""

    model: TfidfModel
    documents: int
    seen_in: dict[str, list[int]]


def library(name: str) -> Any:
    """A module of scikit-learn or scipy; raises MissingError when it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingError(
            "scikit-learn is not installed: it is needed to fit a router, not to use one",
            "route train",
            "pip install 'afs-mlx[route]'",
        ) from error


def classes_of(rows: Sequence[LabelledQuery]) -> list[str]:
    """The experts of the rows by name; raises AfsError when there is nothing to tell apart or nothing for `general`."""
    found = sorted({row.expert for row in rows})
    if len(found) < 2 or FALLBACK not in found:
        raise AfsError(
            f"the rows know {', '.join(found)}", "routing rows", f"rows for two experts are needed, and for {FALLBACK}"
        )
    return found


def fit_tfidf(samples: Sequence[Sample], settings: Settings) -> Fitted:
    """Fit on all samples."""
    classes = sorted({sample.expert for sample in samples})
    blocks, seen_in = _vocabulary(samples, settings)
    empty = TfidfModel(classes, [0.0] * len(classes), blocks, [1.0] * len(classes), array("b"))
    weights, bias = _regression(
        _matrix(empty, samples),
        [sample.expert for sample in samples],
        settings.inverse_regularisation,
        [sample.weight for sample in samples],
    )
    scales = [max(float(abs(row).max()), 1e-9) / _LARGEST for row in weights]
    whole = [
        round(float(weights[place, token]) / scales[place])
        for token in range(weights.shape[1])
        for place in range(len(classes))
    ]
    return Fitted(TfidfModel(classes, bias, blocks, scales, array("b", whole)), len(samples), seen_in)


def validated(rows: Sequence[LabelledQuery], settings: Settings, samples: Samples) -> list[list[float]]:
    """The scores of every row by the model that saw no row of its fold, classes in the order of `classes_of`."""
    scores: list[list[float]] = [[] for _ in rows]
    for _, held in _folds(rows):
        model = fit_tfidf(samples.without(set(held)), settings).model
        _same_classes(model.classes, rows)
        for n in held:
            scores[n] = model.logits(samples.of_rows[n][0].found)
    return scores


def choose(
    rows: Sequence[LabelledQuery], samples: Samples, candidates: Sequence[Settings]
) -> tuple[Settings, list[list[float]], list[dict[str, Any]]]:
    """The settings with the least log loss on the held-out folds, their scores, and what every candidate reached."""
    labels = labels_of(rows)
    table: list[dict[str, Any]] = []
    best: tuple[float, Settings, list[list[float]]] | None = None
    for settings in candidates:
        scores = validated(rows, settings, samples)
        loss = calibrated_loss(scores, labels)
        table.append({**vars(settings), "log_loss": round(loss, 4), "accuracy": round(_accuracy(scores, labels), 4)})
        if best is None or loss < best[0]:
            best = (loss, settings, scores)
    if best is None:
        raise ValueError("no candidate settings")
    return best[1], best[2], table


def validated_head(rows: Sequence[LabelledQuery], states: "Floats", strength: float) -> list[list[float]]:
    """The same for a head on states."""
    scores: list[list[float]] = [[] for _ in rows]
    names = [row.expert for row in rows]
    for kept, held in _folds(rows):
        weights, bias = fit_head(states[kept], [names[n] for n in kept], strength)
        for n, row in zip(held, states[held] @ weights.T + bias, strict=True):
            scores[n] = row.tolist()
    return scores


def fit_head(states: "Floats", names: Sequence[str], strength: float) -> tuple["Floats", "Floats"]:
    """(weights, bias) of a linear head, standardisation taken in; shapes (classes, hidden) and (classes,)."""
    mean, deviation = states.mean(axis=0), states.std(axis=0) + 1e-6
    weights, bias = _regression((states - mean) / deviation, names, strength)
    weights = weights / deviation
    return weights, bias - weights @ mean


def calibrate(rows: Sequence[LabelledQuery], scores: Sequence[Sequence[float]]) -> Calibration:
    """Temperature and thresholds from held-out scores."""
    classes, labels = classes_of(rows), labels_of(rows)
    temperature = fit_temperature(scores, labels)
    table = [softmax(row, temperature) for row in scores]
    found = guesses(classes, table, [row.expert for row in rows])
    inside = [
        max(zip(each, classes, strict=True)) for each, row in zip(table, rows, strict=True) if row.expert != FALLBACK
    ]

    def coverage(threshold: float) -> float:
        return sum(name != FALLBACK and best >= threshold for best, name in inside) / max(1, len(inside))

    rates = (percent / 100 for percent in range(1, 100))
    wrong_rate = next((rate for rate in rates if coverage(threshold_for(found, rate)) >= COVERAGE), 1.0)
    switch_rate = min(SWITCH_WRONG_RATE, wrong_rate / 2)
    return Calibration(
        temperature=temperature,
        route_threshold=threshold_for(found, wrong_rate),
        switch_threshold=threshold_for(found, switch_rate),
        wrong_rate=wrong_rate,
        switch_wrong_rate=switch_rate,
    )


def figures(rows: Sequence[LabelledQuery], scores: Sequence[Sequence[float]], chosen: Calibration) -> dict[str, Any]:
    """What held-out scores say of a router: they chose its settings too, so a blind test may say less."""
    classes, labels = classes_of(rows), labels_of(rows)
    table = [softmax(row, chosen.temperature) for row in scores]
    likeliest = [max(range(len(classes)), key=row.__getitem__) for row in table]
    right = [a == b for a, b in zip(likeliest, labels, strict=True)]
    sent = [
        classes[n] != FALLBACK and row[n] >= chosen.route_threshold for n, row in zip(likeliest, table, strict=True)
    ]
    inside = [row.expert != FALLBACK for row in rows]
    return {
        "rows": len(rows),
        "likeliest_is_right_in_scope": _share(r for r, i in zip(right, inside, strict=True) if i),
        "coverage_in_scope": _share(s for s, i in zip(sent, inside, strict=True) if i),
        "right_where_sent": _share(r for r, s in zip(right, sent, strict=True) if s),
        "out_of_scope_recall": _share(not s for s, i in zip(sent, inside, strict=True) if not i),
        "expected_calibration_error": round(
            expected_calibration_error([row[n] for n, row in zip(likeliest, table, strict=True)], right), 4
        ),
    }


def calibrated_loss(scores: Sequence[Sequence[float]], labels: Sequence[int]) -> float:
    """The log loss at the best temperature, by which settings are compared."""
    return log_loss(scores, labels, fit_temperature(scores, labels))


def labels_of(rows: Sequence[LabelledQuery]) -> list[int]:
    """Each row's class as a number."""
    places = {name: place for place, name in enumerate(classes_of(rows))}
    return [places[row.expert] for row in rows]


def _share(values: Any) -> float:
    found = list(values)
    return round(sum(found) / len(found), 4) if found else math.nan


def _accuracy(scores: Sequence[Sequence[float]], labels: Sequence[int]) -> float:
    right = [max(range(len(row)), key=row.__getitem__) == label for row, label in zip(scores, labels, strict=True)]
    return sum(right) / len(right)


def _folds(rows: Sequence[LabelledQuery]) -> list[tuple[list[int], list[int]]]:
    """(kept, held out) row numbers of each fold that holds any."""
    places = [fold_of(row) for row in rows]
    sides = [
        ([n for n, p in enumerate(places) if p != fold], [n for n, p in enumerate(places) if p == fold])
        for fold in range(FOLDS)
    ]
    return [(kept, held) for kept, held in sides if held]


def _same_classes(found: Sequence[str], rows: Sequence[LabelledQuery]) -> None:
    if list(found) != classes_of(rows):
        lost = sorted(set(classes_of(rows)) - set(found))
        raise AfsError(f"all rows of {', '.join(lost)} are of one fold", "routing rows", "add groups of these experts")


def _vocabulary(samples: Sequence[Sample], settings: Settings) -> tuple[list[Block], dict[str, list[int]]]:
    """The tokens that stand in enough groups, by name, so that the same rows give the same model."""
    blocks: list[Block] = []
    seen_in: dict[str, list[int]] = {}
    for name, weight in settings.weights.items():
        groups: dict[str, set[str]] = {}
        for sample in samples:
            for token in sample.found.blocks[name]:
                groups.setdefault(token, set()).add(sample.group)
        tokens = sorted(token for token, where in groups.items() if len(where) >= settings.least_groups)
        seen_in[name] = [len(groups[token]) for token in tokens]
        logs = [idf(len(samples), times) for times in seen_in[name]]
        blocks.append(Block(name, weight, {token: n for n, token in enumerate(tokens)}, logs))
    return blocks, seen_in


def _matrix(model: TfidfModel, samples: Sequence[Sample]) -> Any:
    """The values that the model itself would weigh, as a sparse matrix (samples, tokens)."""
    values: list[float] = []
    columns: list[int] = []
    starts = [0]
    for sample in samples:
        for column, value, _, _ in model.values(sample.found):
            columns.append(column)
            values.append(value)
        starts.append(len(columns))
    width = sum(len(block.rows) for block in model.blocks)
    return library("scipy.sparse").csr_matrix((values, columns, starts), shape=(len(samples), width))


def _regression(
    values: Any, names: Sequence[str], strength: float, weights: Sequence[float] | None = None
) -> tuple[Any, Any]:
    """(weights, bias), one row for each class by name."""
    import numpy as np

    found = library("sklearn.linear_model").LogisticRegression(C=strength, max_iter=1000, class_weight="balanced")
    found.fit(values, list(names), sample_weight=weights)
    rows, bias = np.asarray(found.coef_), np.asarray(found.intercept_)
    if len(found.classes_) == 2:  # scikit-learn keeps one row for two classes
        rows, bias = np.vstack([-rows, rows]) / 2, np.concatenate([-bias, bias]) / 2
    return rows, bias
