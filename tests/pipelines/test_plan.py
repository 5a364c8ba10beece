"""A plan reads, measures and reckons; it trains nothing and writes nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from afs_mlx.core.errors import AfsError, MissingError, RefusedError
from afs_mlx.core.memory import Memory
from afs_mlx.core.paths import Workspace
from afs_mlx.engine.training.planning.probe import Probing
from afs_mlx.experts.catalog import Catalog
from afs_mlx.pipelines.plan import PlanConfig, plan
from afs_mlx.schema.example import Example
from afs_mlx.schema.message import Message
from afs_mlx.schema.recipe import Recipe

QUICK = Recipe(rank=2, alpha=4, layers=1, epochs=2, batch_tokens=200, sample_tokens=4)
GB = 10**9


def pair(number: int) -> Example:
    question = Message(role="user", content=f"Clear ${number:02x}.")
    return Example(messages=(question, Message(role="assistant", content=f"stz ${number:02x}")))


def config(recipe: Recipe = QUICK, **changes: Any) -> PlanConfig:
    made = PlanConfig(
        system="You are Din.",
        recipe=recipe,
        base="tiny-qwen2",
        own_base="qwen2.5-coder-3b",
        bases=Catalog.load(Workspace.find()).bases,
        train=[pair(number) for number in range(7)],
        valid=[pair(7)],
    )
    return replace(made, **changes)


def machine(monkeypatch: pytest.MonkeyPatch, available: int, swap: int = 0) -> None:
    """A Linux machine with so much memory left."""
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr(Memory, "here", lambda: Memory(16 * GB, available, swap, 0, 0))
    monkeypatch.setattr("afs_mlx.engine.training.planning.checking.process_bytes", lambda: 0)


def test_a_plan_foresees_time_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 8 * GB)
    events: list[Probing] = []
    found = plan(config(), events.append)
    assert (found.base, found.demo, found.calibrated) == ("tiny-qwen2", True, True)
    assert found.probed == len(events) > 0
    assert found.optimizer_steps == 2 * 2  # seven rows of some 40 tokens, five to a batch
    assert found.forecast.verdict == "fits"
    assert found.forecast.time_s > 0
    assert found.forecast.needed_bytes > found.forecast.peak_bytes > found.forecast.memory_parts["resident"] > 0
    assert found.memory.total_bytes == 16 * GB


def test_nothing_is_written(tmp_path: Path) -> None:
    plan(config(), lambda _: None)  # makes the tiny base's cache
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    plan(config(), lambda _: None)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == files
    assert not Workspace.find().adapters.exists()


def test_what_does_not_fit_is_a_verdict_and_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, GB // 100)
    events: list[Probing] = []
    found = plan(config(force=True), events.append)
    assert found.forecast.verdict == "impossible"
    assert not found.calibrated
    assert found.probed == len(events) == 0
    machine(monkeypatch, GB // 100, swap=GB)
    assert plan(config(), events.append).forecast.verdict == "swaps"


def test_a_base_that_cannot_even_be_loaded_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, GB // 100)
    with pytest.raises(RefusedError, match="the base alone takes"):
        plan(config(), lambda _: None)


def test_what_cannot_be_trained_is_the_same_error_as_in_training() -> None:
    with pytest.raises(MissingError):
        plan(config(base="qwen2.5-coder-3b"), lambda _: None)
    with pytest.raises(AfsError, match="targets match no linear layer: nothing"):
        plan(config(Recipe(targets=("nothing",))), lambda _: None)
    with pytest.raises(AfsError, match="rows are longer than max_seq_tokens = 8"):
        plan(config(Recipe(max_seq_tokens=8)), lambda _: None)
