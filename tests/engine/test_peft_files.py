"""Which files are one adapter, what targets a config means, and that all that is wrong is said at once."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from afs_mlx.core.errors import AfsError, MissingError, UsageError
from afs_mlx.engine import tensor_files
from afs_mlx.engine.adapters import peft_targets
from afs_mlx.engine.adapters.peft import convert_peft
from afs_mlx.engine.adapters.peft_config import read_peft_config
from afs_mlx.engine.adapters.peft_files import choose_adapter, weight_files
from afs_mlx.engine.adapters.peft_reading import read_peft
from afs_mlx.engine.adapters.peft_targets import ranks_and_alphas, target_paths
from afs_mlx.engine.adapters.tensors import Tensor

GOLDEN = Path(__file__).parents[1] / "golden" / "peft"
QV = GOLDEN / "qv-r4"
NAMES = [
    *(f"model.layers.{layer}.self_attn.{side}_proj" for layer in range(3) for side in "qkvo"),
    *(f"model.layers.{layer}.mlp.{side}_proj" for layer in range(3) for side in ("gate", "up", "down")),
    "lm_head",
]
FIRST_MLP = ["0.down_proj", "0.gate_proj", "0.up_proj"]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    folder = tmp_path / "peft"
    shutil.copytree(QV, folder)
    return folder


def shard(folder: Path, count: int, *, index: bool = True) -> dict[str, str]:
    """Split a folder's weights as the Hub's tools do; returns the index's map."""
    whole = folder / "adapter_model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    weight_map = {}
    for number in range(count):
        name = f"adapter_model-{number + 1:05}-of-{count:05}.safetensors"
        part = {key: value for i, (key, value) in enumerate(sorted(tensors.items())) if i % count == number}
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    if index:
        write_index(folder, weight_map)
    return weight_map


def write_index(folder: Path, weight_map: dict[str, Any]) -> None:
    (folder / "adapter_model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def same(first: Path, second: Path) -> bool:
    one, two = (load_file(folder / "adapters.safetensors") for folder in (first, second))
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


# Shards


@pytest.mark.parametrize("index", [True, False])
def test_shards_are_one_adapter(index: bool, copy: Path, tiny_base: Path, tmp_path: Path) -> None:
    shard(copy, 3, index=index)
    convert_peft(copy, tiny_base, tmp_path / "sharded")
    convert_peft(QV, tiny_base, tmp_path / "whole")
    assert same(tmp_path / "sharded", tmp_path / "whole")


@pytest.mark.parametrize("index", [True, False])
def test_missing_shard_is_half_a_download(index: bool, copy: Path) -> None:
    shard(copy, 3, index=index)
    (copy / "adapter_model-00003-of-00003.safetensors").unlink()
    with pytest.raises(MissingError, match=r"half a download: adapter_model-00003-of-00003\.safetensors missing"):
        read_peft(copy)


def test_index_must_name_shards_and_their_tensors(copy: Path) -> None:
    weight_map = shard(copy, 2)
    write_index(copy, weight_map | {"a": "../../secret.safetensors", "b": 3})
    with pytest.raises(AfsError, match=r"files that are no shards of this adapter \(2 problems\)"):
        read_peft(copy)
    write_index(copy, weight_map | {"lost": "adapter_model-00001-of-00002.safetensors"})
    with pytest.raises(AfsError, match=r"lost: named in adapter_model\.safetensors\.index\.json, in no file"):
        read_peft(copy)
    write_index(copy, {})
    with pytest.raises(AfsError, match="has no weight_map"):
        read_peft(copy)


def test_tensor_in_two_shards(copy: Path) -> None:
    shard(copy, 2)
    shutil.copy(copy / "adapter_model-00001-of-00002.safetensors", copy / "adapter_model-00002-of-00002.safetensors")
    with pytest.raises(AfsError, match=r"in adapter_model-00001-of-00002\.safetensors and in adapter_model-00002"):
        read_peft(copy)


# Several adapters


def test_own_adapter_is_taken_and_others_are_told(tmp_path: Path) -> None:
    folder = GOLDEN / "micro" / "several-names"
    assert choose_adapter(folder).others == ("second",)
    assert choose_adapter(folder, "second").path == folder / "second"
    assert choose_adapter(folder, "default").path == folder
    assert read_peft(folder).others == ("second",)
    first, second = (read_peft(folder, name).tensors[0].floats() for name in ("default", "second"))
    assert not np.array_equal(first, second)


def test_only_subfolders(tmp_path: Path) -> None:
    shutil.copytree(QV, tmp_path / "all" / "one")
    assert choose_adapter(tmp_path / "all").path == tmp_path / "all" / "one"
    shutil.copytree(QV, tmp_path / "all" / "two")
    with pytest.raises(UsageError, match="several adapters here: one, two") as caught:
        choose_adapter(tmp_path / "all")
    assert "--adapter one" in caught.value.fix
    with pytest.raises(UsageError, match="no adapter 'three' here: one, two"):
        choose_adapter(tmp_path / "all", "three")


def test_names_within_one_file(copy: Path, tiny_base: Path, tmp_path: Path) -> None:
    path = copy / "adapter_model.safetensors"
    tensors = load_file(path)
    both = {key.replace(".weight", ".first.weight"): value for key, value in tensors.items()}
    both |= {key.replace(".weight", ".second.weight"): 2 * value for key, value in tensors.items()}
    save_file(both, path)
    with pytest.raises(UsageError, match="several adapters in one file: first, second"):
        read_peft(copy)
    with pytest.raises(UsageError, match="no adapter 'third' in this file: first, second"):
        read_peft(copy, "third")
    convert_peft(copy, tiny_base, tmp_path / "out", adapter="first")
    convert_peft(QV, tiny_base, tmp_path / "plain")
    assert same(tmp_path / "out", tmp_path / "plain")


# Bad folders


def test_folder_that_may_not_be_read(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(self: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", closed)
    with pytest.raises(AfsError, match="the folder cannot be read: Permission denied"):
        read_peft(copy)


@pytest.mark.parametrize("name", ["adapter_model.safetensors.part", "adapter_model.safetensors.crdownload"])
def test_half_a_download(name: str, copy: Path) -> None:
    (copy / "adapter_model.safetensors").rename(copy / name)
    with pytest.raises(MissingError, match=f"half a download: only {re.escape(name)}"):
        weight_files(copy)


def test_everything_wrong_is_said_at_once(copy: Path, tiny_base: Path, tmp_path: Path) -> None:
    """Config, weights and base together: one message, and nothing written."""
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": float("nan"), "use_qalora": True}))
    tensors = load_file(copy / "adapter_model.safetensors")
    tensors[next(iter(tensors))][0, 0] = np.nan
    save_file(tensors, copy / "adapter_model.safetensors")
    half = tmp_path / "half"
    shutil.copytree(tiny_base, half)
    (half / "model.safetensors").write_bytes((half / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(AfsError) as caught:
        convert_peft(copy, half, tmp_path / "out")
    for part in ("lora_alpha: nan", "use_qalora", "1 of 256 numbers are NaN", "model.safetensors: not a complete"):
        assert part in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_nan_and_wrong_shapes_are_said_together(copy: Path, tiny_base: Path, tmp_path: Path) -> None:
    tensors = load_file(copy / "adapter_model.safetensors")
    q = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    tensors[q] = np.ones((128, 4), np.float32)
    tensors["base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight"][2, 2] = np.inf
    save_file(tensors, copy / "adapter_model.safetensors")
    with pytest.raises(AfsError) as caught:
        convert_peft(copy, tiny_base, tmp_path / "out")
    assert "made for (out, in) = (128, 64), the base has (64, 64)" in str(caught.value)
    assert "layers.1.self_attn.v_proj.lora_A: 1 of 256 numbers" in str(caught.value)


def test_nan_found_while_writing_leaves_nothing(copy: Path, tiny_base: Path, tmp_path: Path) -> None:
    tensors = load_file(copy / "adapter_model.safetensors")
    for layer in (0, 3):
        tensors[f"base_model.model.model.layers.{layer}.self_attn.v_proj.lora_B.weight"][0, 0] = np.nan
    save_file(tensors, copy / "adapter_model.safetensors")
    with pytest.raises(AfsError, match=r"cannot be converted \(2 problems\)") as caught:
        convert_peft(copy, tiny_base, tmp_path / "out")
    assert "layers.3.self_attn.v_proj.lora_b: 1 of 128 numbers" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_scale_that_leaves_float32_is_refused(copy: Path, tiny_base: Path, tmp_path: Path) -> None:
    """Folding it into b would make infinities."""
    config = json.loads((copy / "adapter_config.json").read_text())
    change = {"lora_alpha": 1e-20, "alpha_pattern": {"model.layers.3.self_attn.q_proj": 1e29}}
    (copy / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(AfsError, match=r"layers\.3\.self_attn\.q_proj\.lora_b: \d+ of 256 numbers are NaN or infinite"):
        convert_peft(copy, tiny_base, tmp_path / "out")


# Targets, after PEFT's own rules


def settings(tmp_path: Path, **changes: Any) -> Any:
    value = {"peft_type": "LORA", "r": 3, "lora_alpha": 5, "target_modules": ["q_proj"]} | changes
    (tmp_path / "adapter_config.json").write_text(json.dumps(value))
    return read_peft_config(tmp_path)


def short(paths: set[str]) -> list[str]:
    return sorted(path.replace("model.layers.", "").replace("self_attn.", "").replace("mlp.", "") for path in paths)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["0.q_proj", "1.q_proj", "2.q_proj"]),
        ({"target_modules": ["proj"]}, []),
        ({"target_modules": ["self_attn.q_proj"]}, ["0.q_proj", "1.q_proj", "2.q_proj"]),
        ({"layers_to_transform": 1}, ["1.q_proj"]),
        ({"layers_to_transform": [0, 2]}, ["0.q_proj", "2.q_proj"]),
        ({"target_modules": ["model.layers.2.mlp.up_proj"], "layers_to_transform": [0]}, ["2.up_proj"]),
        ({"target_modules": ["lm_head"], "layers_to_transform": [0]}, ["lm_head"]),  # a whole path, not an end
        ({"target_modules": "all-linear", "exclude_modules": r".*(attn|[12]\.mlp).*"}, FIRST_MLP),
        ({"target_modules": r".*\.1\.mlp\.(up|down)_proj"}, ["1.down_proj", "1.up_proj"]),
        ({"target_modules": "q_proj"}, []),  # a pattern must match the whole path
        ({"exclude_modules": ["0.self_attn.q_proj"]}, ["1.q_proj", "2.q_proj"]),
        ({"modules_to_save": ["self_attn"]}, []),
    ],
)  # fmt: skip
def test_targets(changes: dict[str, Any], expected: list[str], tmp_path: Path) -> None:
    assert short(target_paths(settings(tmp_path, **changes), NAMES, tmp_path)) == expected


def test_the_first_pattern_that_matches_counts(tmp_path: Path) -> None:
    known = settings(
        tmp_path,
        rank_pattern={"q_proj": 7, r".*layers\.[01]\..*": 9, "layers.2.mlp.up_proj": 2, "proj": 99},
        alpha_pattern={r"^model\.layers\.1\.self_attn\.q_proj": 40, "self_attn.q_proj": 30},
    )
    found = ranks_and_alphas(known, NAMES, tmp_path)
    assert found["model.layers.0.self_attn.q_proj"] == (7, 30)
    assert found["model.layers.1.self_attn.q_proj"] == (7, 40)
    assert found["model.layers.1.self_attn.v_proj"] == (9, 5)
    assert found["model.layers.2.mlp.up_proj"] == (2, 5)
    assert found["model.layers.2.mlp.down_proj"] == (3, 5)


@pytest.mark.parametrize("key", ["target_modules", "exclude_modules"])
def test_pattern_that_runs_for_years_is_stopped(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peft_targets, "TIMEOUT_S", 1.0)
    evil = settings(tmp_path, **{"target_modules": "all-linear", key: r"([a-z_.0-9]+)+!"})
    with pytest.raises(AfsError, match="this pattern takes too long to match"):
        target_paths(evil, NAMES, tmp_path)


def test_pattern_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(AfsError, match=r"'\(q_proj' is no pattern: missing \)"):
        target_paths(settings(tmp_path, target_modules="(q_proj"), NAMES, tmp_path)
    with pytest.raises(AfsError, match="is no pattern"):
        ranks_and_alphas(settings(tmp_path, rank_pattern={"*": 2}), NAMES, tmp_path)


def test_whole_tensors_that_the_config_promises_must_be_there(tmp_path: Path, tiny_base: Path, copy: Path) -> None:
    config = json.loads((copy / "adapter_config.json").read_text())
    change = {"modules_to_save": ["lm_head"], "trainable_token_indices": [3]}
    (copy / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(AfsError) as caught:
        convert_peft(copy, tiny_base, tmp_path / "out")
    assert "lm_head: trained whole by the config, and not in the file" in str(caught.value)
    assert "embed_tokens: token rows by the config, and not in the file" in str(caught.value)


def test_tensors_stream(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tensor is read once, and at most one ahead of the one being written: no adapter fills the memory."""
    read = 0
    floats: Callable[[Tensor], Any] = Tensor.floats
    ahead = tensor_files._ahead

    def counted(self: Tensor) -> Any:
        nonlocal read
        read += 1
        return floats(self)

    def watched(arrays: Any) -> Any:
        for written, array in enumerate(ahead(arrays)):
            time.sleep(0.002)  # long enough for a reader that does not wait
            assert read <= written + 2
            yield array

    monkeypatch.setattr(Tensor, "floats", counted)
    monkeypatch.setattr(tensor_files, "_ahead", watched)
    convert_peft(QV, tiny_base, tmp_path / "out")
    assert read == 16


def test_conversion_never_imports_mlx(tiny_base: Path, tmp_path: Path) -> None:
    """Nothing of an adapter, sound or hostile, can reach mlx before it is asked to run."""
    code = (
        "import sys; from pathlib import Path; from afs_mlx.engine.adapters.peft import convert_peft;"
        "convert_peft(*map(Path, sys.argv[1:]));"
        "print([name for name in sys.modules if name.split('.')[0] in ('mlx', 'mlx_lm', 'torch', 'pickle')])"
    )
    arguments = [sys.executable, "-c", code, str(QV), str(tiny_base), str(tmp_path / "out")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("[]", "['pickle']")  # numpy imports pickle and calls none of it here
    assert (tmp_path / "out" / "adapters.safetensors").is_file()
