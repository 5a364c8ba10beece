"""Fitting and comparing routers, with the real library, on a few rows and the tiny base."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from afs_mlx.core.errors import AfsError, MissingError
from afs_mlx.core.files import read_json, write_json
from afs_mlx.core.jsonl import write_jsonl
from afs_mlx.core.paths import Workspace
from afs_mlx.engine.bases.location import choose_base
from afs_mlx.experts.catalog import Catalog
from afs_mlx.experts.routing import fitting, head, learned
from afs_mlx.experts.routing.choosing import ROUTERS
from afs_mlx.experts.routing.head import head_file
from afs_mlx.experts.routing.rows import read_rows
from afs_mlx.pipelines.route import RouteConfig, route
from afs_mlx.pipelines.route_eval import RouteEvalConfig, Routing, route_eval
from afs_mlx.pipelines.route_train import (
    MakeRouterConfig,
    RouteTrainConfig,
    RouteTrainResult,
    make_router,
    route_train,
)
from afs_mlx.schema.expert import Expert

pytestmark = pytest.mark.slow

pytest.importorskip("sklearn")

ASKED = {
    "din": ["shrink {}", "make {} smaller", "{} in fewer bytes", "tighten {}"],
    "nayru": ["write {}", "I need {}", "code me {}", "implement {}"],
    "farore": ["{} crashes", "{} does not work", "fix {}", "what is wrong with {}"],
    "veran": ["explain {}", "what does {} do", "why does {} use x", "how does {} work"],
    "majora": ["how many cycles is {}", "time {}", "is {} within vblank", "cycle count of {}"],
    "farore-afs": ["open {}.asm", "find {} in my files", "rename {} in src/", "commit {}"],
    "general": ["a poem about {} and the moon", "{} in python", "my dog ate {}", "who is the king of {}"],
}
THINGS = ["the fade", "a scroll loop", "my nmi", "the menu"]


@pytest.fixture(scope="module")
def experts() -> dict[str, Expert]:
    return Catalog.load(Workspace(Path("/nonexistent"))).experts


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = [
        {"query": form.format(thing), "expert": expert, "group": f"{expert} {place}", "kind": "short"}
        for expert, forms in ASKED.items()
        for place, form in enumerate(forms)
        for thing in THINGS
    ]
    write_jsonl(path, rows)
    return path


@pytest.fixture(scope="module")
def made(data: Path, experts: dict[str, Expert], tmp_path_factory: pytest.TempPathFactory) -> RouteTrainResult:
    return make_router(MakeRouterConfig([data], tmp_path_factory.mktemp("router"), experts), lambda step: None)


@pytest.fixture
def shipped(made: RouteTrainResult, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The few rows' router in the place of the package's own."""
    monkeypatch.setattr(learned, "HERE", made.path.parent)
    learned.shipped.cache_clear()
    yield
    learned.shipped.cache_clear()


@pytest.fixture
def fit(data: Path, experts: dict[str, Expert], shipped: None) -> RouteTrainConfig:
    base = choose_base("tiny-qwen2", "", Catalog.load(Workspace.find()).bases)
    return RouteTrainConfig([data], base, experts)


def test_a_made_router_says_what_it_is_made_of(made: RouteTrainResult, data: Path) -> None:
    manifest = read_json(made.path.with_name("tfidf.manifest.json"), "")
    assert manifest["data"][0]["rows"] == 7 * 4 * 4
    assert manifest["experts"]["din"] == 16
    assert len(manifest["figures"]["candidates"]) > 3
    assert manifest["figures"]["validation"]["coverage_in_scope"] >= fitting.COVERAGE
    # Whole forms are held out, so this is about words that forms share.
    assert made.figures["tfidf"]["likeliest_is_right_in_scope"] > 2 / 7


def test_the_same_rows_give_the_same_bytes(
    made: RouteTrainResult, data: Path, experts: dict[str, Expert], tmp_path: Path
) -> None:
    again = make_router(MakeRouterConfig([data], tmp_path, experts), lambda step: None)
    assert again.path.read_bytes() == made.path.read_bytes()
    manifests = [path.with_name("tfidf.manifest.json").read_text() for path in (made.path, again.path)]
    assert manifests[0] == manifests[1]


def test_rows_for_an_unknown_expert_are_refused(experts: dict[str, Expert], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{"query": "x", "expert": "ganon"}, {"query": "y", "expert": "general"}])
    with pytest.raises(AfsError, match="there is no expert 'ganon'"):
        make_router(MakeRouterConfig([tmp_path / "rows.jsonl"], tmp_path, experts), lambda step: None)


def test_two_files_that_disagree_are_refused_and_rows_in_both_count_once(
    data: Path, experts: dict[str, Expert], tmp_path: Path
) -> None:
    other = tmp_path / "routing-more.jsonl"
    write_jsonl(other, [{"query": "Shrink  the fade", "expert": "din"}])
    result = make_router(MakeRouterConfig([data, other], tmp_path, experts), lambda step: None)
    manifest = read_json(result.path.with_name("tfidf.manifest.json"), "")
    assert [entry["rows"] for entry in manifest["data"]] == [112, 1]
    assert sum(manifest["experts"].values()) == 112
    write_jsonl(other, [{"query": "Shrink  the fade", "expert": "majora"}])
    with pytest.raises(AfsError, match="is for majora here, for din elsewhere"):
        make_router(MakeRouterConfig([data, other], tmp_path, experts), lambda step: None)


def test_a_group_never_straddles_and_every_row_is_held_out_once(data: Path) -> None:
    rows = read_rows(data)
    folds = fitting._folds(rows)
    held = [n for _, part in folds for n in part]
    assert sorted(held) == list(range(len(rows)))
    for kept, part in folds:
        assert not {rows[n].group for n in kept} & {rows[n].group for n in part}


def test_head_and_mean_are_fitted_kept_and_used(fit: RouteTrainConfig) -> None:
    catalog = Catalog.load(Workspace.find())
    with pytest.raises(MissingError, match="no head was fitted for tiny-qwen2"):
        route(RouteConfig(["x"], catalog, "head", "tiny-qwen2"))
    steps: list[str] = []
    result = route_train(fit, lambda step: steps.append(step.text))
    assert result.path == head_file(fit.base.identity["weights_sha256"])
    assert set(result.figures) == {"head", "mean"} == set(result.thresholds)
    assert "the states of 112 queries on tiny-qwen2" in steps
    for router in ("head", "mean"):
        [found] = route(RouteConfig(["shrink the fade"], catalog, router, "tiny-qwen2")).routes
        assert sum(found.scores.values()) == pytest.approx(1, abs=1e-3)
        assert bool(found.words) == (router == "mean")


def test_a_head_for_other_weights_or_beside_another_router_is_not_used(fit: RouteTrainConfig) -> None:
    path = route_train(fit, lambda step: None).path
    catalog = Catalog.load(Workspace.find())
    stored = json.loads(path.read_text())
    for change, message in (
        ({"tfidf_sha256": "0"}, "beside an earlier TF-IDF router"),
        ({"weights_sha256": "0"}, "for other weights"),
        ({"weights": "AAAA"}, "do not fit"),
        ({"bias": [0.0]}, "damaged"),
    ):
        write_json(path, {**stored, **change})
        with pytest.raises(AfsError, match=message):
            route(RouteConfig(["x"], catalog, "head", "tiny-qwen2"))


def test_a_head_needs_the_rows_of_the_shipped_router(fit: RouteTrainConfig, tmp_path: Path) -> None:
    other = tmp_path / "rows.jsonl"
    other.write_text(fit.data[0].read_text() + '{"query": "one more", "expert": "din"}\n')
    with pytest.raises(AfsError, match="fitted on other rows"):
        route_train(replace(fit, data=[other]), lambda step: None)


def test_all_four_beside_each_other(fit: RouteTrainConfig, tmp_path: Path) -> None:
    config = RouteEvalConfig(fit.data[0], fit.experts, tmp_path / "result.json", fit.base)
    without = route_eval(config, lambda event: None)
    assert [report.router for report in without.reports] == ["keywords", "tfidf"]
    assert "afs-mlx route train --base tiny-qwen2" in without.missing["head"]
    route_train(fit, lambda step: None)
    events: list[Routing] = []
    result = route_eval(config, events.append)
    assert [report.router for report in result.reports] == list(ROUTERS)
    assert not result.missing
    assert events[-1] == Routing("mean", 112, 112)
    assert read_json(config.out, "")["reports"][1]["n"] == 112
    tfidf = result.reports[1]
    assert tfidf.accuracy.value > 0.9, "these are the rows it was fitted on"
    assert sum(tfidf.confusion["din"].values()) == 16


def test_without_scikit_learn_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(fitting.importlib, "import_module", missing)
    with pytest.raises(MissingError, match="scikit-learn is not installed"):
        fitting.library("sklearn.linear_model")


def test_the_mean_is_the_mean() -> None:
    text, states = [0.0, math.log(3)], [math.log(9), 0.0]
    assert [math.exp(score) for score in head.mean_scores(text, states)] == pytest.approx([0.575, 0.425])
