"""Whole models under a budget: side by side as far as it goes, the least recently used let go, idle ones too."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.utils import load_model, quantize_model, save_config, save_model
from pool_experts import EXPERTS, GREEDY, asked, make_expert, tiny

from afs_mlx.core.errors import AfsError
from afs_mlx.engine.bases.location import BaseFolder
from afs_mlx.engine.bases.tiny_qwen2 import build_tiny_qwen2
from afs_mlx.engine.inference import budget as budgets
from afs_mlx.engine.inference import residents
from afs_mlx.engine.inference.budget import Budget, bytes_held, bytes_on_loading
from afs_mlx.engine.inference.pool import ExpertPool
from afs_mlx.engine.inference.voice import Voice

SHORT = GREEDY.model_copy(update={"max_tokens": 6})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[BaseFolder]:
    """Three whole models of the same size, as fused experts are."""
    folder = tmp_path_factory.mktemp("models")
    for seed in range(3):
        build_tiny_qwen2(folder / f"fused-{seed}", seed)
    return [tiny(folder / f"fused-{seed}") for seed in range(3)]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    real = residents.load_with_adapter
    monkeypatch.setattr(residents, "load_with_adapter", lambda *paths: seen.append(paths[0].name) or real(*paths))
    return seen


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 0.001  # so that each use is later than the one before
        return self.now_s


def room_for(models: list[BaseFolder], count: float, **changes: float) -> Budget:
    size = bytes_on_loading(models[0].folder)
    return replace(Budget(int(size * count), 1 << 24, 1 << 40), **changes)


def answered(voice: Voice) -> str:
    return "".join(voice.stream(asked("rep #$20"), SHORT))


def there(pool: ExpertPool) -> set[str]:
    return {model.folder.name for model in pool.stats().models}


def test_models_stand_side_by_side_as_far_as_the_budget_goes(models: list[BaseFolder], loads: list[str]) -> None:
    with ExpertPool(room_for(models, 2.5), Clock()) as pool:
        voices = [pool.voice(model) for model in models[:2]]
        said = [answered(voice) for voice in voices]
        assert [answered(voice) for voice in voices] == said
        assert loads == ["fused-0", "fused-1"]
        answered(voices[0])
        pool.voice(models[2])
        assert there(pool) == {"fused-0", "fused-2"}, "the least recently used went"
        assert answered(voices[1]) == said[1], "a voice reads its model again"
        assert there(pool) == {"fused-1", "fused-2"}
        assert loads == ["fused-0", "fused-1", "fused-2", "fused-1"]
        assert all(voice.notices == () for voice in voices)


def test_a_model_above_the_budget_runs_alone_and_says_so(models: list[BaseFolder]) -> None:
    with ExpertPool(room_for(models, 0.5), Clock()) as pool:
        first = pool.voice(models[0])
        assert "fused-0 takes 0.00 GB, the budget for models is 0.00 GB: it runs alone" in first.notices
        said = answered(first)
        second = pool.voice(models[1])
        assert there(pool) == {"fused-1"}
        assert answered(second) != said
        assert answered(first) == said


def test_a_model_above_the_machines_memory_is_refused_before_it_is_read(
    models: list[BaseFolder], loads: list[str]
) -> None:
    size = bytes_on_loading(models[0].folder)
    with ExpertPool(Budget(size, 1 << 20, size - 1), Clock()) as pool:
        with pytest.raises(AfsError, match=r"the model takes .* GB, this machine has .* GB"):
            pool.voice(models[0])
        assert loads == []
        assert pool.stats().models == ()


def test_adapters_count_and_go_before_the_budget_is_passed(models: list[BaseFolder], tmp_path: Path) -> None:
    paths = [make_expert(models[0].folder, tmp_path / f"a{seed}", EXPERTS["wide"], seed) for seed in range(4)]
    size = bytes_on_loading(models[0].folder)
    with ExpertPool(room_for(models, 100), Clock()) as pool:
        pool.voice(models[0], paths[0])
        one = pool.stats().adapters_bytes
    with ExpertPool(Budget(size + 2 * one, 1 << 24, 1 << 40), Clock()) as pool:
        voices = [pool.voice(models[0], path) for path in paths]
        assert [folder.name for folder, _ in pool.stats().adapters] == ["a2", "a3"]
        assert len({answered(voice) for voice in voices}) == 4, "a voice keeps its own"
        pool.voice(models[0], paths[2])
        pool.voice(models[0], paths[0])
        assert [folder.name for folder, _ in pool.stats().adapters] == ["a2", "a0"]


def test_what_is_idle_goes_and_comes_back(models: list[BaseFolder], loads: list[str]) -> None:
    clock = Clock()
    with ExpertPool(room_for(models, 9, idle_s=60), clock) as pool:
        voices = [pool.voice(model) for model in models[:2]]
        said = answered(voices[0])
        clock.now_s += 59
        answered(voices[1])
        clock.now_s += 2
        assert pool.unload_idle() == 1
        assert there(pool) == {"fused-1"}
        assert pool.stats().conversations == 1, "its caches went too"
        assert answered(voices[0]) == said
        clock.now_s += 61
        pool.voice(models[2])
        assert there(pool) == {"fused-2"}, "whoever is chosen later clears up"
        assert loads == ["fused-0", "fused-1", "fused-0", "fused-2"]


def test_a_model_that_answers_is_neither_idle_nor_let_go(models: list[BaseFolder]) -> None:
    clock = Clock()
    with ExpertPool(room_for(models, 1.5, idle_s=60), clock) as pool:
        stream = pool.voice(models[0]).stream(asked("a"), SHORT)
        next(stream)
        clock.now_s += 1000
        assert pool.unload_idle() == 0
        with pytest.raises(AfsError, match="no room for this model while an answer is still being written"):
            pool.voice(models[1])
        list(stream)
        pool.voice(models[1])
        assert there(pool) == {"fused-1"}


def test_a_model_that_changed_on_disk_after_it_was_let_go_is_not_taken_for_the_old(
    models: list[BaseFolder], tmp_path: Path
) -> None:
    folder = tmp_path / "fused"
    shutil.copytree(models[0].folder, folder)
    with ExpertPool(room_for(models, 1.5), Clock()) as pool:
        voice = pool.voice(tiny(folder))
        pool.voice(models[1])
        build_tiny_qwen2(folder, 9)
        with pytest.raises(AfsError, match="changed on disk since it was chosen"):
            answered(voice)
        answered(pool.voice(tiny(folder)))


@pytest.mark.parametrize("packed", [False, True])
def test_what_a_model_will_take_is_known_from_its_headers(
    monkeypatch: pytest.MonkeyPatch, models: list[BaseFolder], tmp_path: Path, packed: bool
) -> None:
    folder = tmp_path / "half"
    shutil.copytree(models[0].folder, folder)
    model, config = load_model(folder)
    model.set_dtype(mx.bfloat16)
    if packed:
        model, config = quantize_model(model, config, group_size=32, bits=4)
    save_model(folder, model)
    save_config(config, folder / "config.json")
    with ExpertPool(room_for(models, 9), Clock()) as pool:
        pool.voice(tiny(folder))
        (held,) = pool.stats().models
    assert bytes_on_loading(folder) == held.size_bytes == bytes_held(load_model(models[0].folder)[0])
    monkeypatch.setattr(budgets.mx, "default_device", lambda: "gpu")
    assert bytes_on_loading(folder) == (folder / "model.safetensors").stat().st_size


def test_the_machines_budget_leaves_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "metal_device", lambda: None)
    found = Budget.here()
    assert 0 < found.caches_bytes < found.models_bytes < found.machine_bytes
    monkeypatch.setattr(budgets, "metal_device", lambda: (1000, 2000))
    assert Budget.here().models_bytes == 1000
    assert json.dumps(found.__dict__)


def test_stats_tell_what_is_held(models: list[BaseFolder]) -> None:
    run: Callable[[Voice], str] = answered
    with ExpertPool(room_for(models, 9), Clock()) as pool:
        run(pool.voice(models[0]))
        stats = pool.stats()
        assert stats.models_bytes == stats.models[0].size_bytes == bytes_on_loading(models[0].folder)
        assert stats.caches_bytes > 0
        assert stats.active_bytes >= stats.models_bytes
        assert not stats.models[0].in_use
