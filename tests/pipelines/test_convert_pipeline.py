"""A PEFT adapter becomes a run that answers with PyTorch's logits; what does not fit leaves nothing behind."""

import errno
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from afs_mlx.cli.app import app
from afs_mlx.core.errors import AfsError, MissingError, RefusedError, UsageError
from afs_mlx.core.files import sha256_of
from afs_mlx.core.paths import Workspace
from afs_mlx.engine.adapters import format as adapter_format
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


@pytest.fixture
def micro_llama(tmp_path: Path, tiny_base: Path) -> Path:
    """The golden's llama as a whole model folder: with a tokenizer, which choosing a base asks for."""
    sys.path.insert(0, str(GOLDEN))
    try:
        import bases as micro
    finally:
        sys.path.remove(str(GOLDEN))
    folder = tmp_path / "micro-llama"
    micro.build(folder, "micro-llama")
    for file in tiny_base.glob("token*"):
        shutil.copy(file, folder)
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
    ("named", "base"),
    [
        ("mlx-community/Qwen2.5-Coder-3B-Instruct-8bit", "qwen2.5-coder-3b"),
        ("someone/Qwen2.5-Coder-3B-Instruct-unsloth-bnb-4bit", "qwen2.5-coder-3b"),
        ("someone/qwen2.5-coder-7b-instruct-MLX-4bit", "qwen2.5-coder-7b"),
        ("Qwen/Qwen2.5-Coder-14B-Instruct-AWQ", "qwen2.5-coder-14b"),
        ("Qwen/Qwen2.5-Coder-7B-Instruct-GPTQ-Int4", "qwen2.5-coder-7b"),
        ("/home/someone/Meta-Llama-3-8B-Instruct-bf16/", "llama-3-8b"),
        ("C:\\models\\llama-3-8b-Instruct-bnb-4bit", "llama-3-8b"),
    ],
)
def test_a_repack_stands_for_its_lineage(tmp_path: Path, named: str, base: str) -> None:
    """None of these is on this machine, and the message says which one is wanted."""
    with pytest.raises(MissingError, match=f"the base {base} is not on this machine"):
        converted(renamed(tmp_path, named))


@pytest.mark.parametrize("named", ["Qwen/Qwen2.5-Coder-3B", "Qwen/Qwen2.5-Coder-3B-4bit", "/models/qwen2.5-coder-3b"])
def test_the_raw_model_is_not_the_instruct_model(tmp_path: Path, named: str) -> None:
    with pytest.raises(UsageError, match="is not in the catalog"):
        converted(renamed(tmp_path, named))


def test_another_lineage_than_the_adapters_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AfsError, match=r"was made for qwen2\.5-coder-3b .*, not for tiny-qwen2") as caught:
        converted(renamed(tmp_path, "Qwen/Qwen2.5-Coder-3B-Instruct"), base="tiny-qwen2")
    assert "--base qwen2.5-coder-3b" in caught.value.fix
    assert nothing_is_left()


def test_a_stranger_is_taken_at_the_persons_word(tmp_path: Path) -> None:
    result = converted(renamed(tmp_path, "someone/else"), base="tiny-qwen2")
    assert result.notices == (
        "the adapter names 'someone/else' as its base, which is not in the catalog; tiny-qwen2 was taken at your word",
    )
    assert converted(base="tiny-qwen2", out=tmp_path / "own").notices == ()


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


def in_python(*args: Any, **options: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("place", "failure"),
    [
        ((adapter_format, "stream_tensors"), in_python),
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


def test_verification_is_in_the_manifest() -> None:
    result = converted(verify=True, expert="din@v2")
    assert result.verification is not None
    record = Run.read(result.path).record["verification"]
    assert record == result.verification
    assert record["reference"] == "float32 base + ΔW"
    assert 0 < record["largest_difference"] < 1e-4 < record["largest_logit"]
    assert "verification" not in Run.read(converted(out=Workspace.find().adapters / "x").path).record


def test_an_adapter_that_does_not_agree_is_not_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afs_mlx.engine.adapters.verifying.TOLERANCE", 0.0)
    with pytest.raises(RefusedError, match="does not agree with float32 base"):
        converted(verify=True, expert="din@v2")
    assert nothing_is_left()


def test_one_of_several_adapters(tmp_path: Path, micro_llama: Path) -> None:
    folder = GOLDEN / "micro" / "several-names"
    result = converted(folder, base=str(micro_llama), out=tmp_path / "own")
    assert result.notices == ("other adapters in this folder were left: second; --adapter names one",)
    second = converted(folder, base=str(micro_llama), adapter="second", verify=True)
    assert second.path.name.startswith("second-")
    inputs = {entry["file"]: entry["sha256"] for entry in Run.read(second.path).record["inputs"]}
    assert inputs["adapter_model.safetensors"] == sha256_of(folder / "second" / "adapter_model.safetensors")


@pytest.mark.parametrize("name", ["pickle", "llama-seven-bf16"])
def test_other_formats_become_runs(name: str, tmp_path: Path, micro_llama: Path) -> None:
    result = converted(GOLDEN / "micro" / name, base=str(micro_llama), verify=True)
    assert result.verification is not None
    assert result.verification["largest_difference"] < 1e-4
    assert Run.read(result.path).usable


def test_whole_weights_run_as_they_are(tmp_path: Path) -> None:
    """The output layer of tiny-qwen2 is tied; a bias of its q layers can be carried."""
    folder = renamed(tmp_path, "tiny-qwen2")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "bias": "all"}))
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors["base_model.model.model.layers.0.self_attn.q_proj.base_layer.bias"] = np.full(64, 0.5, np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    result = converted(folder, verify=True)
    assert (result.kind, len(result.notices)) == ("full", 1)
    assert "holds whole weights" in result.notices[0]
    model = load_with_adapter(tiny(), result.path).model
    assert np.array(model.layers[0].self_attn.q_proj.bias).tolist() == [0.5] * 64


def test_the_command_tells_what_it_did(tmp_path: Path, micro_llama: Path) -> None:
    runner = CliRunner()
    arguments = ["convert", str(GOLDEN / "micro" / "several-names"), "--base", str(micro_llama), "--verify"]
    done = runner.invoke(app, [*arguments, "--out", str(tmp_path / "own")])
    assert done.exit_code == 0, done.output
    assert "notice: other adapters in this folder were left: second" in done.stderr
    assert re.search(r"verified: logits within \d\.\de-0\d of float32 base \+ ΔW", done.stderr)
    assert done.stdout.strip().endswith("own")
    done = runner.invoke(app, [*arguments, "--adapter", "second", "--json", "--out", str(tmp_path / "second")])
    value = json.loads(done.stdout)
    assert (value["kind"], value["rank"], value["notices"]) == (
        "lora",
        2,
        ["other adapters in this folder were left: default; --adapter names one"],
    )
    assert value["verification"]["largest_difference"] < 1e-4
