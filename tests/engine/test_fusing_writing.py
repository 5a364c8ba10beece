"""Shards written tensor by tensor: readable by safetensors and mlx, split at the limit, indexed."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
from safetensors import safe_open

from afs_mlx.engine.fusing.writing import INDEX, Shards


def arrays() -> dict[str, np.ndarray]:
    return {f"layer.{n}.weight": np.full((10, 10), n, np.float32) for n in range(5)}


def write(folder: Path, limit_bytes: int) -> list[Path]:
    shards = Shards(folder, limit_bytes, [*arrays(), "one.that.never.comes"])
    for name, array in arrays().items():
        shards.add(name, array, mx.float32)
    shards.close(parameters=500)
    return sorted(folder.glob("*.safetensors"))


def test_one_file_where_all_fits(tmp_path: Path) -> None:
    (path,) = write(tmp_path, 10**9)
    assert path.name == "model.safetensors"
    with safe_open(path, framework="numpy") as file:
        assert {name: float(file.get_tensor(name)[0, 0]) for name in file.keys()} == {  # noqa: SIM118
            f"layer.{n}.weight": float(n) for n in range(5)
        }
    assert mx.load(str(path))["layer.4.weight"].tolist() == arrays()["layer.4.weight"].tolist()


def test_a_shard_ends_before_the_limit(tmp_path: Path) -> None:
    paths = write(tmp_path, 1000)  # two tensors of 400 bytes
    assert [path.name for path in paths] == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"] == {"total_size": 2000, "total_parameters": 500}
    found = {}
    for path in paths:
        for name, array in mx.load(str(path)).items():
            assert index["weight_map"][name] == path.name
            found[name] = array[0, 0].item()
    assert found == {f"layer.{n}.weight": float(n) for n in range(5)}


def test_a_tensor_over_the_limit_gets_a_shard_of_its_own(tmp_path: Path) -> None:
    assert len(write(tmp_path, 100)) == 5


def test_bfloat16_is_written_as_its_bits(tmp_path: Path) -> None:
    shards = Shards(tmp_path, 10**9, ["half"])
    half = mx.array([1.5, -2.25]).astype(mx.bfloat16)
    shards.add("half", np.array(half.view(mx.uint16)), mx.bfloat16)
    shards.close(parameters=2)
    found = mx.load(str(tmp_path / "model.safetensors"))["half"]
    assert found.dtype == mx.bfloat16
    assert found.tolist() == [1.5, -2.25]
