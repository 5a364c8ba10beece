"""Adapters that change on disk while they are loaded, and those that never were any good."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from pool_experts import EXPERTS, GREEDY, asked, make_expert, replace_expert, tiny

from afs_mlx.core.errors import AfsError, MissingError
from afs_mlx.core.files import read_json, write_json
from afs_mlx.engine.inference import loaded_adapter
from afs_mlx.engine.inference.pool import ExpertPool
from afs_mlx.engine.inference.voice import Voice


@pytest.fixture
def pool() -> Iterator[ExpertPool]:
    with ExpertPool() as opened:
        yield opened


@pytest.fixture
def adapter(tiny_base: Path, tmp_path: Path) -> Path:
    return make_expert(tiny_base, tmp_path / "adapter", EXPERTS["wide"], 1)


@pytest.fixture
def other(tiny_base: Path, tmp_path: Path) -> Path:
    return make_expert(tiny_base, tmp_path / "other", EXPERTS["odd"], 2)


def answered(voice: Voice) -> str:
    return "".join(voice.stream(asked("rep #$20"), GREEDY))


def test_a_replaced_adapter_is_read_again_and_said(
    pool: ExpertPool, tiny_base: Path, adapter: Path, other: Path
) -> None:
    before = pool.voice(tiny(tiny_base), adapter)
    old, new = answered(before), answered(pool.voice(tiny(tiny_base), other))
    assert before.notices == ()
    replace_expert(adapter, other)
    assert answered(before) == old, "a voice that is there goes on as it was"
    after = pool.voice(tiny(tiny_base), adapter)
    assert after.notices == (f"the adapter {adapter} was replaced on disk: the new one answers from here on",)
    assert answered(after) == new != old
    assert after.key != before.key
    assert pool.voice(tiny(tiny_base), adapter).notices == (), "said once"


def test_the_same_bytes_with_another_time_are_the_same_adapter(
    monkeypatch: pytest.MonkeyPatch, pool: ExpertPool, tiny_base: Path, adapter: Path
) -> None:
    first = pool.voice(tiny(tiny_base), adapter)
    os.utime(adapter / "adapters.safetensors", (1, 1))
    hashed: list[Path] = []
    real = loaded_adapter.adapter_hash
    monkeypatch.setattr(loaded_adapter, "adapter_hash", lambda folder: hashed.append(folder) or real(folder))
    again = [pool.voice(tiny(tiny_base), adapter) for _ in range(3)]
    assert all(voice.adapter is first.adapter and voice.notices == () for voice in again)
    assert hashed == [adapter], "once, for the new time"


def test_another_scale_alone_is_another_adapter(pool: ExpertPool, tiny_base: Path, adapter: Path) -> None:
    first = pool.voice(tiny(tiny_base), adapter)
    config = read_json(adapter / "adapter_config.json", "config")
    config["lora_parameters"]["scale"] = 0.25
    write_json(adapter / "adapter_config.json", config)
    second = pool.voice(tiny(tiny_base), adapter)
    assert "was replaced" in second.notices[0]
    assert first.key != second.key


def test_a_deleted_adapter_goes_on_from_memory_with_a_notice(pool: ExpertPool, tiny_base: Path, adapter: Path) -> None:
    first = pool.voice(tiny(tiny_base), adapter)
    said = answered(first)
    shutil.rmtree(adapter)
    again = pool.voice(tiny(tiny_base), adapter)
    assert again.notices == (
        f"the adapter {adapter} is no longer on disk: it goes on from memory until this program ends",
    )
    assert answered(again) == answered(first) == said
    with pytest.raises(MissingError, match="there is no such adapter folder"):
        pool.voice(tiny(tiny_base), adapter.with_name("never-was"))


def test_a_corrupted_replacement_is_refused_and_what_was_loaded_stays(
    pool: ExpertPool, tiny_base: Path, adapter: Path, other: Path
) -> None:
    voice, neighbour = pool.voice(tiny(tiny_base), adapter), pool.voice(tiny(tiny_base), other)
    said, said_too = answered(voice), answered(neighbour)
    whole = (adapter / "adapters.safetensors").read_bytes()
    (adapter / "adapters.safetensors").write_bytes(whole[:-100])
    for _ in range(2):
        with pytest.raises(AfsError, match="not a complete safetensors file"):
            pool.voice(tiny(tiny_base), adapter)
    assert (answered(voice), answered(neighbour)) == (said, said_too)
    assert len(pool.stats().adapters) == 2
    (adapter / "adapters.safetensors").write_bytes(whole)
    mended = pool.voice(tiny(tiny_base), adapter)
    assert (mended.adapter, mended.notices) == (voice.adapter, ())


def test_an_adapter_of_another_base_is_refused(pool: ExpertPool, tiny_base: Path, adapter: Path) -> None:
    bare = pool.voice(tiny(tiny_base))
    said = answered(bare)
    config = read_json(adapter / "adapter_config.json", "config")
    config["afs"]["base"] = {"lineage": "qwen2.5-coder-3b", "sha256": "0" * 64}
    write_json(adapter / "adapter_config.json", config)
    with pytest.raises(AfsError, match=r"made for qwen2\.5-coder-3b, not for tiny-qwen2"):
        pool.voice(tiny(tiny_base), adapter)
    assert pool.stats().adapters == ()
    assert answered(bare) == said


def test_an_adapter_of_other_shapes_is_refused(pool: ExpertPool, tiny_base: Path, adapter: Path) -> None:
    config = read_json(adapter / "adapter_config.json", "config")
    config["lora_parameters"]["rank"] = 15
    write_json(adapter / "adapter_config.json", config)
    with pytest.raises(AfsError, match=r"are not \(in, 15\) and \(15, out\)"):
        pool.voice(tiny(tiny_base), adapter)


def test_an_adapter_that_changes_while_it_is_read_is_refused(
    monkeypatch: pytest.MonkeyPatch, pool: ExpertPool, tiny_base: Path, adapter: Path, other: Path
) -> None:
    real = loaded_adapter.adapter_hash

    def swap(folder: Path) -> str:
        replace_expert(adapter, other)
        return real(folder)

    monkeypatch.setattr(loaded_adapter, "adapter_hash", swap)
    with pytest.raises(AfsError, match="changed while it was read"):
        pool.voice(tiny(tiny_base), adapter)
    assert pool.stats().adapters == ()


def test_a_base_that_is_gone_or_damaged_leaves_the_others(pool: ExpertPool, tiny_base: Path, tmp_path: Path) -> None:
    voice = pool.voice(tiny(tiny_base))
    said = answered(voice)
    broken = tmp_path / "broken"
    shutil.copytree(tiny_base, broken)
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(AfsError, match="damaged or incomplete"):
        pool.voice(tiny(broken))
    with pytest.raises(MissingError, match="there is no model folder"):
        pool.voice(tiny(tmp_path / "none"))
    assert answered(voice) == said
    assert len(pool.stats().models) == 1
