"""A PEFT adapter becomes a run that answers with PyTorch's logits; what does not fit leaves nothing behind."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors import SafetensorError

from afs_mlx.core.errors import AfsError, UsageError
from afs_mlx.core.files import sha256_of
from afs_mlx.core.paths import Workspace
from afs_mlx.engine import tensor_files
from afs_mlx.engine.adapters.attaching import load_with_adapter
from afs_mlx.engine.bases.location import locate, weights_hash
from afs_mlx.experts.catalog import Catalog
from afs_mlx.pipelines.convert import ConvertConfig, ConvertResult, convert
from afs_mlx.runs.folder import Run
from afs_mlx.runs.selection import select

GOLDEN = Path(__file__).parents[1] / "golden" / "peft"
QV = GOLDEN / "qv-r4"


def converted(peft: Path = QV, **changes: Any) -> ConvertResult:
    workspace = Workspace.find()
    return convert(
        ConvertConfig(**{"peft_folder": peft, "catalog": Catalog.load(workspace), "workspace": workspace} | changes)
    )


def tiny() -> Path:
    folder = locate(Catalog.load(Workspace.find()).bases["tiny-qwen2"])
    assert folder is not None
    return folder


def renamed(tmp_path: Path, base: object) -> Path:
    """The golden adapter under another base's name."""
    folder = tmp_path / "peft"
    shutil.copytree(QV, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
    return folder


def nothing_is_left() -> bool:
    adapters = Workspace.find().adapters
    return not adapters.exists() or not any(path.is_file() for path in adapters.rglob("*"))


@pytest.mark.parametrize("name", ["qv-r4", "layers-1-3-bf16"])
def test_the_run_answers_with_pytorchs_logits(name: str) -> None:
    converted(GOLDEN / name, expert="din@v2")
    selection = select(Workspace.find(), "din", "v2", "tiny-qwen2")
    assert selection is not None
    base = load_with_adapter(tiny(), selection.run.path)
    with np.load(GOLDEN / "logits.npz") as golden:
        found = np.array(base.model(mx.array(golden["tokens"][None])))[0]
        assert np.abs(found - golden[name]).max() < 1e-4
        assert np.abs(golden["base"] - golden[name]).max() > 1


def test_what_was_converted_is_told_and_recorded() -> None:
    result = converted(expert="din@v2")
    assert (result.base, result.expert, result.rank, result.alpha, result.scale) == ("tiny-qwen2", "din@v2", 4, 8, 2)
    assert set(result.targets) == {"self_attn.q_proj", "self_attn.v_proj"}
    assert result.layers == (0, 1, 2, 3)
    assert result.tensors == 16
    assert result.path.parent == Workspace.find().adapters / "din"
    run = Run.read(result.path)
    assert (run.status, run.base, run.expert, run.usable) == ("imported", "tiny-qwen2", "din", True)
    assert run.record["version"] == "v2"
    assert run.record["demo"] is True
    assert run.record["base"]["weights_sha256"] == weights_hash(tiny())
    inputs = {entry["file"]: entry["sha256"] for entry in run.record["inputs"]}
    names = ("adapter_config.json", "adapter_model.safetensors")
    assert inputs == {name: sha256_of(QV / name) for name in names}
    assert run.record["system"] == Catalog.load(Workspace.find()).prompt("din")


def test_another_version_does_not_take_it() -> None:
    converted(expert="din@v2")
    assert select(Workspace.find(), "din", "v1", "tiny-qwen2") is None
    assert select(Workspace.find(), "din", "v2", "smollm2-135m") is None


def test_without_an_expert_it_lies_among_the_imported() -> None:
    result = converted()
    assert result.path.parent == Workspace.find().adapters / "imported"
    assert (result.expert, Run.read(result.path).expert) == ("", "")
    assert result.path.name.startswith("qv-r4-tiny-qwen2-")


@pytest.mark.parametrize("named", ["golden/tiny-qwen2", "tiny-qwen2", "/home/someone/models/Tiny-Qwen2/"])
def test_the_base_is_found_by_the_name_that_the_adapter_gives(tmp_path: Path, named: str) -> None:
    assert converted(renamed(tmp_path, named)).base == "tiny-qwen2"


def test_a_folder_on_this_machine_is_taken_as_it_is(tmp_path: Path, tiny_base: Path) -> None:
    assert converted(renamed(tmp_path, str(tiny_base))).base == str(tiny_base)
    assert converted(base=str(tiny_base), out=tmp_path / "here").base == str(tiny_base)


@pytest.mark.parametrize(
    ("named", "message"), [("stranger/model-1b", "'stranger/model-1b', is not in the catalog"), (None, "does not name")]
)
def test_an_unknown_base_asks_for_one(tmp_path: Path, named: object, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        converted(renamed(tmp_path, named))
    assert "--base" in caught.value.fix
    assert "tiny-qwen2" in caught.value.fix
    assert nothing_is_left()


def test_an_adapter_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    folder = renamed(tmp_path, "tiny-qwen2")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "r": 5}))
    with pytest.raises(AfsError):
        converted(folder, expert="din@v2")
    assert nothing_is_left()
    assert select(Workspace.find(), "din", "v2", "tiny-qwen2") is None


def test_out_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note.txt").write_text("kept")
    with pytest.raises(AfsError, match="the folder exists already"):
        converted(out=tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["note.txt"]


def in_rust(*args: Any, **options: Any) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def in_python(*args: Any, **options: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("place", "failure"),
    [
        ((tensor_files, "save_file"), in_rust),
        ((tensor_files, "save_file"), in_python),
        (("afs_mlx.pipelines.convert.write_json",), in_python),
    ],
)
def test_a_full_disk_leaves_no_half_run(
    place: tuple[Any, ...], failure: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = converted(expert="din@v2", out=Workspace.find().adapters / "din" / "earlier").path
    with monkeypatch.context() as patch:
        patch.setattr(*place, failure)
        with pytest.raises((AfsError, OSError), match=r"disk is full|No space left"):
            converted(expert="din@v2")
    assert [path.name for path in earlier.parent.iterdir()] == ["earlier"]
    selection = select(Workspace.find(), "din", "v2", "tiny-qwen2")
    assert selection is not None
    assert selection.run.name == "earlier"
