"""What frozen blocks give is run once per row, kept within a budget, the same wherever it lies and after any break."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import load

from afs_mlx.core.errors import AfsError
from afs_mlx.engine.training import lora
from afs_mlx.engine.training.batches import batch_of, shared_tokens
from afs_mlx.engine.training.compute import row_file
from afs_mlx.engine.training.compute.frozen import Budget, FrozenRows, cache_key, rows_hash
from afs_mlx.engine.training.compute.lean import LeanForward
from afs_mlx.engine.training.compute.losses import Losses
from afs_mlx.engine.training.compute.row_file import RowFile
from afs_mlx.engine.training.dropout import Keys
from afs_mlx.engine.training.events import Prepared
from afs_mlx.engine.training.rows import Row
from afs_mlx.schema.recipe import Recipe

WIDTH, DEPTH, BATCH_TOKENS = 64, 2, 60
MUCH = 10**9


def rows(*lengths: int, shared: int = 0) -> list[Row]:
    rng = np.random.default_rng(3)
    start = rng.integers(1, 600, shared)
    found = []
    for number, length in enumerate(lengths):
        tokens = np.concatenate([start, [number + 1], rng.integers(1, 600, length - shared - 1)])
        found.append(Row(tokens.astype(np.int32), np.arange(length) >= length - 3))
    return found


SAMPLES = {"nothing shared": rows(12, 30, 17, 12, 25, 9), "shared": rows(12, 30, 17, 13, 25, 19, shared=7)}


class Kept:
    """FrozenRows over the tiny base; `runs` counts how often a group of rows was run."""

    def __init__(self, base: Path, sample: Sequence[Row], budget: Budget, dtype: mx.Dtype = mx.float32) -> None:
        model, _ = load(str(base))
        model.set_dtype(dtype)
        self.forward = LeanForward(model, Keys(mx.random.key(0)), fast_exp=dtype == mx.float32, recompute=False)
        self.rows, self.shared = sample, shared_tokens(sample)
        self.frozen = FrozenRows(self.forward, sample, DEPTH, self.shared, BATCH_TOKENS, budget)
        self.events: list[Prepared] = []
        self.runs: list[tuple[int, ...]] = []
        real = self.frozen._run

        def counted(numbers: Sequence[int]) -> list[mx.array]:
            self.runs.append(tuple(numbers))
            return real(numbers)

        self.frozen._run = counted  # type: ignore[method-assign]

    def prepare(self) -> "Kept":
        self.frozen.prepare(self.events.append)
        return self

    def hidden(self, *numbers: int, round_to: int = 1) -> np.ndarray:
        return np.array(self.frozen.hidden(batch_of(self.rows, numbers, self.shared, round_to)).astype(mx.float32))

    def bits(self) -> list[bytes]:
        """Every row on its own."""
        return [self.hidden(number).tobytes() for number in range(len(self.rows))]


def size_of(sample: Sequence[Row], numbers: Sequence[int] | None = None, width: int = 4) -> int:
    """Bytes of these rows' own outputs."""
    chosen = range(len(sample)) if numbers is None else numbers
    return sum(len(sample[i].tokens) - 1 - shared_tokens(sample) for i in chosen) * WIDTH * width


def in_memory(size: int = MUCH) -> Budget:
    return Budget(size, 0, None, "k")


def on_disk(folder: Path, size: int = MUCH, key: str = "k") -> Budget:
    return Budget(0, size, folder, key)


def reference(base: Path, row: Row) -> np.ndarray:
    """mlx-lm's own first blocks on one row."""
    model, _ = load(str(base))
    hidden = model.model.embed_tokens(mx.array(row.tokens[None, :-1]))
    for block in model.layers[:DEPTH]:
        hidden = block(hidden, "causal", None)
    return np.array(hidden[0])


@pytest.mark.parametrize("place", ["memory", "disk", "nowhere"])
@pytest.mark.parametrize("shape", SAMPLES)
def test_what_is_kept_is_what_the_blocks_give(tiny_base: Path, tmp_path: Path, shape: str, place: str) -> None:
    sample = SAMPLES[shape]
    budget = {"memory": in_memory(), "disk": on_disk(tmp_path), "nowhere": in_memory(0)}[place]
    kept = Kept(tiny_base, sample, budget).prepare()
    expected = [reference(tiny_base, row) for row in sample]
    n = kept.shared
    found = kept.hidden(4, 0, 3)
    wanted = np.concatenate([expected[4][:n], *(expected[i][n:] for i in (4, 0, 3))])
    assert np.linalg.norm(found - wanted) < 1e-5 * np.linalg.norm(wanted)
    padded = kept.hidden(4, 0, round_to=16)
    width = -(-(len(sample[4].tokens) - 1 - n) // 16) * 16
    assert len(padded) == n + 2 * width
    own = padded[n + width :][: len(sample[0].tokens) - 1 - n]
    assert np.linalg.norm(own - expected[0][n:]) < 1e-5 * np.linalg.norm(expected[0][n:])


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_every_row_is_run_once_and_never_again(tiny_base: Path, tmp_path: Path, place: str) -> None:
    sample = SAMPLES["shared"]
    kept = Kept(tiny_base, sample, in_memory() if place == "memory" else on_disk(tmp_path)).prepare()
    assert sorted(row for group in kept.runs for row in group) == list(range(6))
    before = len(kept.runs)
    assert kept.bits() == kept.bits()
    kept.hidden(5, 1, 2)
    assert len(kept.runs) == before
    assert kept.events[-1] == Prepared(6, 6, size_of(sample), place == "disk", False)


def test_memory_and_disk_hold_the_same_bits(tiny_base: Path, tmp_path: Path) -> None:
    for sample in SAMPLES.values():
        budgets = in_memory(), on_disk(tmp_path / str(len(sample[0].tokens)))
        memory, disk = (Kept(tiny_base, sample, budget).prepare().bits() for budget in budgets)
        assert memory == disk


def test_bfloat16_comes_back_from_disk_bit_for_bit(tiny_base: Path, tmp_path: Path) -> None:
    sample = SAMPLES["shared"]
    memory, disk = (
        Kept(tiny_base, sample, budget, mx.bfloat16).prepare() for budget in (in_memory(), on_disk(tmp_path))
    )
    assert disk.frozen.hidden(batch_of(sample, [0], disk.shared)).dtype == mx.bfloat16
    assert memory.bits() == disk.bits()
    assert (tmp_path / "k.bin").stat().st_size == size_of(sample, width=2)


# Budgets


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_rows_beyond_the_budget_are_run_each_time(tiny_base: Path, tmp_path: Path, place: str) -> None:
    """Short ones are kept first; what is kept depends on sizes alone."""
    sample = SAMPLES["nothing shared"]
    order = sorted(range(6), key=lambda i: len(sample[i].tokens))
    size = size_of(sample, order[:4]) + 5
    kept = Kept(tiny_base, sample, in_memory(size) if place == "memory" else on_disk(tmp_path, size)).prepare()
    assert {row for group in kept.runs for row in group} == set(order[:4])
    assert kept.events[-1] == Prepared(4, 6, size_of(sample, order[:4]), place == "disk", False)
    kept.runs.clear()
    kept.hidden(*order)
    kept.hidden(*order)
    assert kept.runs == [tuple(order[4:])] * 2
    if place == "disk":
        assert (tmp_path / "k.bin").stat().st_size == size_of(sample, order[:4]) <= size


@pytest.mark.parametrize("exact", [True, False])
def test_the_budget_of_memory_holds_to_the_byte(tiny_base: Path, tmp_path: Path, exact: bool) -> None:
    sample = SAMPLES["shared"]
    budget = Budget(size_of(sample) - (not exact), MUCH, tmp_path, "k")
    kept = Kept(tiny_base, sample, budget).prepare()
    assert kept.events[-1].on_disk is not exact
    assert kept.events[-1].done == 6
    assert (tmp_path / "k.bin").exists() is not exact


def test_without_a_folder_or_with_less_disk_than_memory_nothing_is_written(tiny_base: Path, tmp_path: Path) -> None:
    sample = SAMPLES["shared"]
    half = size_of(sample) // 2
    for budget in (Budget(half, MUCH, None, "k"), Budget(half, half - 1, tmp_path, "k"), Budget(0, 0, tmp_path, "k")):
        kept = Kept(tiny_base, sample, budget).prepare()
        assert not kept.frozen._file
        assert kept.hidden(0, 1).shape[1] == WIDTH
    assert list(tmp_path.iterdir()) == []


# The file of an earlier run


def test_the_next_run_finds_the_file_and_runs_nothing(tiny_base: Path, tmp_path: Path) -> None:
    sample = SAMPLES["shared"]
    first = Kept(tiny_base, sample, on_disk(tmp_path)).prepare()
    second = Kept(tiny_base, sample, on_disk(tmp_path)).prepare()
    assert second.runs == []
    assert second.events == [Prepared(6, 6, size_of(sample), True, True)]
    assert second.bits() == first.bits()


@pytest.fixture(scope="module")
def gone() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("left", ["cut", "longer", "no data"])
def test_a_file_that_is_not_whole_is_made_anew(tiny_base: Path, tmp_path: Path, left: str) -> None:
    sample = SAMPLES["shared"]
    expected = Kept(tiny_base, sample, in_memory()).prepare().bits()
    if left != "no data":
        (tmp_path / "k.bin").write_bytes(bytes(size_of(sample) + (1 if left == "longer" else -1)))
    again = Kept(tiny_base, sample, on_disk(tmp_path)).prepare()
    assert not again.events[-1].reused
    assert again.bits() == expected
    assert [path.name for path in tmp_path.iterdir()] == ["k.bin"]


def test_what_a_killed_run_left_half_is_not_used_and_goes(tiny_base: Path, tmp_path: Path, gone: int) -> None:
    sample = SAMPLES["shared"]
    expected = Kept(tiny_base, sample, in_memory()).prepare().bits()
    for half in (f"k.{gone}.part", f"other.{gone}.part"):
        (tmp_path / half).write_bytes(bytes(size_of(sample)))
    (tmp_path / f"other.{os.getppid()}.part").write_bytes(b"another run at work")
    again = Kept(tiny_base, sample, on_disk(tmp_path)).prepare()
    assert not again.events[-1].reused
    assert again.bits() == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["k.bin", f"other.{os.getppid()}.part"]


def test_until_all_rows_are_there_no_other_run_finds_the_file(tiny_base: Path, tmp_path: Path) -> None:
    kept = Kept(tiny_base, SAMPLES["shared"], on_disk(tmp_path))
    assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
    kept.prepare()
    assert [path.name for path in tmp_path.iterdir()] == ["k.bin"]


def test_two_runs_at_once_never_leave_a_half_file_for_whole(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: int
) -> None:
    """Two ranks of one machine, or two trainings of one expert; the second is killed."""
    sample = SAMPLES["shared"]
    first = Kept(tiny_base, sample, on_disk(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(row_file.os, "getpid", lambda: gone)
        Kept(tiny_base, sample, on_disk(tmp_path))  # opened, and killed before it has run a row
    expected = first.prepare().bits()
    third = Kept(tiny_base, sample, on_disk(tmp_path)).prepare()
    assert third.events[-1].reused
    assert third.bits() == expected == Kept(tiny_base, sample, in_memory()).prepare().bits()


def test_two_runs_at_once_may_both_finish(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = SAMPLES["shared"]
    first = Kept(tiny_base, sample, on_disk(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(row_file.os, "getpid", os.getppid)
        second = Kept(tiny_base, sample, on_disk(tmp_path))
    assert first.prepare().bits() == second.prepare().bits() == first.bits()
    assert [path.name for path in tmp_path.iterdir()] == ["k.bin"]


def test_files_used_longest_ago_make_room(tiny_base: Path, tmp_path: Path) -> None:
    sample = SAMPLES["shared"]
    size = size_of(sample)
    for number, key in enumerate("abc"):
        Kept(tiny_base, sample, on_disk(tmp_path, 3 * size, key)).prepare()
        os.utime(tmp_path / f"{key}.bin", (number, number))
    Kept(tiny_base, sample, on_disk(tmp_path, 3 * size, "a")).prepare()  # used again: now the newest
    Kept(tiny_base, sample, on_disk(tmp_path, 3 * size, "d")).prepare()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "c.bin", "d.bin"]


def full(*args: Any, **options: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_is_full_is_an_error_with_a_remedy_and_leaves_no_file(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_file.os, "posix_fallocate", full, raising=False)
    with pytest.raises(AfsError, match="the disk is full") as caught:
        Kept(tiny_base, SAMPLES["shared"], on_disk(tmp_path))
    assert "disk_gb" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_the_space_is_taken_before_it_is_written_to(tmp_path: Path) -> None:
    """A full disk met through a memory map would be a signal that ends the process."""
    RowFile.open(tmp_path, "k", {0: 100_000}, mx.float32, MUCH)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_blocks * 512 >= 400_000


# What a file is made from


def key_of(base: Path, folder: Path, sample: Sequence[Row], sha: str = "b" * 64, **settings: Any) -> str:
    """The name under which the trainer keeps it."""
    given = {"rank": 2, "layers": 2, **settings}
    given["speed"] = {"memory_gb": 0, **given.get("speed", {})}
    recipe = Recipe.model_validate(given)
    model, _ = load(str(base))
    lora.attach(model, recipe)
    Losses(model, recipe, sample, folder, sha).prepare(lambda event: None)
    (path,) = folder.glob("*.bin")
    return path.stem


def test_another_base_rows_depth_or_arithmetic_is_another_file(tiny_base: Path, tmp_path: Path) -> None:
    sample = SAMPLES["shared"]
    first = sample[0].tokens.copy()
    first[-1] += 1
    weights = sample[1].weights.copy()
    weights[-1] = 0.5
    others: dict[str, dict[str, Any]] = {
        "base": {"sha": "c" * 64},
        "a token": {"sample": [Row(first, sample[0].weights), *sample[1:]]},
        "a weight": {"sample": [sample[0], Row(sample[1].tokens, weights), *sample[2:]]},
        "order": {"sample": [sample[1], sample[0], *sample[2:]]},
        "fewer rows": {"sample": sample[:-1]},
        "depth": {"layers": 3},
        "groups": {"batch_tokens": 60},
        "nothing shared": {"speed": {"shared_prompt": False}},
        "exponential": {"speed": {"fast_exp": False}},
    }
    given = {"sample": sample}
    keys = {"plain": key_of(tiny_base, tmp_path / "plain", **given)}
    for name, change in others.items():
        keys[name] = key_of(tiny_base, tmp_path / name, **{**given, **change})
    assert len(set(keys.values())) == len(keys)
    for same in ({"rank": 3}, {"learning_rate": 0.5}, {"seed": 9}, {"speed": {"head_chunk": 1}}, {"epochs": 9}):
        folder = tmp_path / json.dumps(same)
        assert key_of(tiny_base, folder, **{**given, **same}) == keys["plain"], "what the frozen blocks do not see"


def test_without_a_hash_of_the_base_nothing_is_written(tiny_base: Path, tmp_path: Path) -> None:
    recipe = Recipe.model_validate({"rank": 2, "layers": 2, "speed": {"memory_gb": 0}})
    model, _ = load(str(tiny_base))
    lora.attach(model, recipe)
    losses = Losses(model, recipe, SAMPLES["shared"], tmp_path, "")
    losses.prepare(lambda event: None)
    assert losses.ways.frozen_blocks == 2
    assert list(tmp_path.iterdir()) == []


def test_hashes_tell_where_a_row_ends() -> None:
    joined = [Row(np.arange(4, dtype=np.int32), np.ones(4)), Row(np.arange(4, 6, dtype=np.int32), np.ones(2))]
    moved = [Row(np.arange(3, dtype=np.int32), np.ones(3)), Row(np.arange(3, 6, dtype=np.int32), np.ones(3))]
    assert rows_hash(joined) != rows_hash(moved)
    assert rows_hash(joined) == rows_hash([replace(row) for row in joined])
    assert cache_key({"a": 1, "b": 2}) == cache_key({"b": 2, "a": 1}) != cache_key({"a": 2, "b": 1})
