"""Fits routers: the TF-IDF router that the package ships, and for one base a head and its mean with TF-IDF."""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afs_mlx import __version__
from afs_mlx.core.errors import AfsError, problems
from afs_mlx.core.files import sha256_of, write_json
from afs_mlx.core.manifest import input_file, package_version, provenance
from afs_mlx.engine.bases.location import BaseFolder
from afs_mlx.experts.routing import fitting
from afs_mlx.experts.routing.augmenting import Samples, samples_of
from afs_mlx.experts.routing.calibration import Calibration
from afs_mlx.experts.routing.fitting import Settings
from afs_mlx.experts.routing.head import FittedHead, mean_scores, save_head
from afs_mlx.experts.routing.learned import MANIFEST_FILE, MODEL_FILE, Manifest, shipped_manifest
from afs_mlx.experts.routing.model import save
from afs_mlx.experts.routing.rows import FOLDS, LabelledQuery, read_rows
from afs_mlx.schema.expert import Expert

if TYPE_CHECKING:
    import numpy as np

DATA = "data/curated/routing.jsonl"
MORE_DATA = "routing-*.jsonl"  # beside it: rows of other writers
CANDIDATES = [
    Settings(letters=letters, signs=signs, inverse_regularisation=strength)
    for letters, signs in ((1.0, 1.0), (1.0, 1.5), (0.5, 1.0), (0.5, 1.5))
    for strength in (1.0, 2.0, 4.0, 8.0)
]
HEAD_STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1)


@dataclass(frozen=True)
class MakeRouterConfig:
    """`data` holds labelled queries; model and manifest are written to `folder`."""

    data: Sequence[Path]
    folder: Path
    experts: Mapping[str, Expert]


@dataclass(frozen=True)
class RouteTrainConfig:
    """`data` holds the labelled queries that the shipped router was fitted on."""

    data: Sequence[Path]
    base: BaseFolder
    experts: Mapping[str, Expert]


@dataclass(frozen=True)
class Step:
    """What is done now."""

    text: str


@dataclass(frozen=True)
class RouteTrainResult:
    """Where the router lies, and the figures of its validation by name of router."""

    path: Path
    figures: dict[str, dict[str, Any]]
    thresholds: dict[str, Calibration]


def make_router(config: MakeRouterConfig, on_event: Callable[[Step], None]) -> RouteTrainResult:
    """Choose settings, fit TF-IDF on all rows, write it; the same rows and packages give the same bytes."""
    rows = _rows(config.data, config.experts)
    on_event(Step(f"{len(rows)} queries; {FOLDS} folds for each setting"))
    samples = _samples(rows, config.experts)
    settings, scores, table = fitting.choose(rows, samples, CANDIDATES)
    calibration = fitting.calibrate(rows, scores)
    fitted = fitting.fit_tfidf(samples.without(set()), settings)
    path = config.folder / MODEL_FILE
    save(path, fitted.model, fitted.documents, fitted.seen_in)
    figures = fitting.figures(rows, scores, calibration)
    manifest = {
        "made_by": f"afs-mlx {__version__}: data/make_router.py, scikit-learn {package_version('scikit-learn')}",
        "data": _inputs(config.data),
        "experts": _counts(rows),
        "keywords": {name: list(config.experts[name].keywords) for name in fitting.classes_of(rows)},
        "model": input_file(path),
        "folds": FOLDS,
        "settings": vars(settings),
        "calibration": calibration.model_dump(),
        "figures": {"validation": figures, "candidates": table},
    }
    write_json(config.folder / MANIFEST_FILE, manifest)
    return RouteTrainResult(path, {"tfidf": figures}, {"tfidf": calibration})


def route_train(config: RouteTrainConfig, on_event: Callable[[Step], None]) -> RouteTrainResult:
    """Fit head and mean for a base and put them in the user's cache. The mean's temperature is fitted after averaging.

    Raises MissingError without scikit-learn, AfsError where the rows are not those that TF-IDF was fitted on.
    """
    import numpy as np

    from afs_mlx.engine.bases.loading import load_base
    from afs_mlx.engine.inference.states import layer_count, query_states

    rows = _rows(config.data, config.experts)
    fitting.library("sklearn.linear_model")
    known = _known(config.data)
    on_event(Step(f"the states of {len(rows)} queries on {config.base.id}"))
    loaded = load_base(config.base.folder)
    layer = layer_count(loaded) // 2
    states = query_states(loaded, [row.query for row in rows], layer).astype(np.float64)
    on_event(Step(f"fitting a head on layer {layer}"))
    heads = {c: fitting.validated_head(rows, states, c) for c in HEAD_STRENGTHS}
    labels = fitting.labels_of(rows)
    losses = {c: fitting.calibrated_loss(scores, labels) for c, scores in heads.items()}
    strength = min(losses, key=losses.__getitem__)
    head_scores = heads[strength]
    on_event(Step("validating the mean with TF-IDF"))
    text_scores = fitting.validated(rows, Settings(**known.settings), _samples(rows, config.experts))
    mean = [mean_scores(text, head) for text, head in zip(text_scores, head_scores, strict=True)]
    calibrations = {"head": fitting.calibrate(rows, head_scores), "mean": fitting.calibrate(rows, mean)}
    figures = {
        name: fitting.figures(rows, scores, calibrations[name])
        for name, scores in (("head", head_scores), ("mean", mean))
    }
    weights, bias = fitting.fit_head(states, [row.expert for row in rows], strength)
    fitted = FittedHead(
        base=config.base.id,
        weights_sha256=config.base.identity["weights_sha256"],
        layer=layer,
        hidden=states.shape[1],
        classes=fitting.classes_of(rows),
        bias=[float(value) for value in bias],
        weights=_encoded(weights),
        head=calibrations["head"],
        mean=calibrations["mean"],
        data=_inputs(config.data),
        tfidf_sha256=known.model["sha256"],
        figures={**figures, "inverse_regularisation": strength, "log_loss": {str(c): v for c, v in losses.items()}},
        provenance=provenance("route train"),
    )
    return RouteTrainResult(save_head(fitted), figures, calibrations)


def _known(data: Sequence[Path]) -> Manifest:
    """The shipped router's manifest; raises AfsError when it was fitted on other rows than these."""
    found = shipped_manifest()
    if [entry["sha256"] for entry in found.data] != [sha256_of(path) for path in data]:
        raise AfsError(
            "the shipped TF-IDF router was fitted on other rows",
            ", ".join(map(str, data)),
            "run python data/make_router.py first: the mean is of two routers that know the same rows",
        )
    return found


def _rows(data: Sequence[Path], experts: Mapping[str, Expert]) -> list[LabelledQuery]:
    """The rows of all files, each query once; raises AfsError where two rows disagree about a query."""
    rows: dict[str, LabelledQuery] = {}
    found: list[str] = []
    for path in data:
        for row in read_rows(path):
            key = " ".join(row.query.lower().split())
            other = rows.setdefault(key, row)
            if other.expert != row.expert:
                found.append(f"{path.name}: {row.query[:60]!r} is for {row.expert} here, for {other.expert} elsewhere")
            if row.expert not in experts:
                found.append(f"{path.name}: there is no expert {row.expert!r}")
    if found:
        raise problems(list(dict.fromkeys(found)), "bad rows", str(data[0].parent), "mend the key `expert`")
    return list(rows.values())


def _inputs(data: Sequence[Path]) -> list[dict[str, Any]]:
    return [input_file(path, len(read_rows(path))) for path in data]


def data_files(first: Path) -> list[Path]:
    """All files of labelled queries beside the first one, itself included."""
    return [first, *sorted(first.parent.glob(MORE_DATA))]


def _samples(rows: Sequence[LabelledQuery], experts: Mapping[str, Expert]) -> Samples:
    return samples_of(rows, {name: experts[name].keywords for name in fitting.classes_of(rows)})


def _counts(rows: Sequence[LabelledQuery]) -> dict[str, int]:
    return {name: sum(row.expert == name for row in rows) for name in fitting.classes_of(rows)}


def _encoded(weights: "np.ndarray[Any, Any]") -> str:
    return base64.b64encode(weights.astype("<f4").tobytes()).decode("ascii")
