"""The plain-array model: arithmetic by hand, storage, damage, and the shipped file."""

import json
import math
from array import array
from collections import Counter
from pathlib import Path

import pytest

from afs_mlx.core.errors import AfsError
from afs_mlx.core.files import sha256_of
from afs_mlx.core.paths import Workspace, checkout
from afs_mlx.experts.catalog import Catalog
from afs_mlx.experts.routing.features import Features
from afs_mlx.experts.routing.learned import HERE, MODEL_FILE, shipped, shipped_manifest
from afs_mlx.experts.routing.model import Block, TfidfModel, idf, load, save
from afs_mlx.experts.routing.rows import read_rows

SEEN_IN = {"words": [3, 1], "letters": [2], "signs": []}


def model() -> TfidfModel:
    logs = {name: [idf(3, times) for times in seen] for name, seen in SEEN_IN.items()}
    blocks = [
        Block("words", 1.0, {"a": 0, "b": 1}, logs["words"]),
        Block("letters", 0.5, {" a ": 0}, logs["letters"]),
        Block("signs", 1.0, {}, logs["signs"]),
    ]
    return TfidfModel(["din", "general"], [0.5, -0.5], blocks, [0.1, 0.2], array("b", [10, -10, 20, 0, 4, 127]))


def text(**words: int) -> Features:
    return Features({"words": Counter(words), "letters": Counter({" a ": 2}), "signs": Counter()}, ("a", "a"), False)


def test_the_arithmetic() -> None:
    a, b = (1 + math.log(3)) * idf(3, 3), 1.0 * idf(3, 1)
    length = math.hypot(a, b)
    expected = [
        0.5 + 0.1 * (a / length * 10 + b / length * 20 + 0.5 * 4),
        -0.5 + 0.2 * (a / length * -10 + 0.5 * 127),
    ]
    assert model().logits(text(a=3, b=1, unknown=5)) == pytest.approx(expected)


def test_contributions_add_up_to_the_difference() -> None:
    found = text(a=1)
    parts = model().contributions(found, "din", "general")
    din, general = model().logits(found)
    assert sum(weight for _, _, weight in parts) == pytest.approx(din - general - 1.0)
    assert {(block, token) for block, token, _ in parts} == {("words", "a"), ("letters", "a")}


def test_it_is_stored_and_read_again(tmp_path: Path) -> None:
    save(tmp_path / "m.json", model(), 3, SEEN_IN)
    again = load(tmp_path / "m.json")
    assert again.logits(text(a=3, b=2)) == pytest.approx(model().logits(text(a=3, b=2)))
    assert again.classes == ("din", "general")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("weights", "AA==", "do not fit together"),
        ("weights", "?", "not base64"),
        ("bias", [1.0], "do not fit together"),
        ("schema_version", 2, "do not fit together"),
        ("documents", 1, "more texts than there are"),
        ("more", 1, "there is no such key"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, key: str, value: object, message: str) -> None:
    path = tmp_path / "m.json"
    save(path, model(), 3, SEEN_IN)
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(AfsError, match=message):
        load(path)


def test_the_shipped_router_was_fitted_on_the_rows_that_are_here() -> None:
    root = checkout()
    assert root is not None
    folder, manifest = root / "data/curated", shipped_manifest()
    files = [folder / "routing.jsonl", *sorted(folder.glob("routing-*.jsonl"))]
    recorded = [(entry["file"], entry["sha256"], entry["rows"]) for entry in manifest.data]
    here = [(path.name, sha256_of(path), len(read_rows(path))) for path in files]
    assert recorded == here, "run python data/make_router.py"
    assert manifest.model["sha256"] == sha256_of(HERE / MODEL_FILE)


def test_the_shipped_router_knows_the_catalogs_experts_and_keywords() -> None:
    experts = Catalog.load(Workspace.find()).experts
    assert set(shipped().classes) == set(experts)
    assert shipped_manifest().keywords == {name: list(experts[name].keywords) for name in sorted(experts)}
