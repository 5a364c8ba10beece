"""A run goes out as a PEFT folder with its manifest, under its base's own name, and replaces nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest

from afs_mlx.core.errors import AfsError, MissingError
from afs_mlx.core.files import sha256_of
from afs_mlx.core.paths import Workspace
from afs_mlx.experts.catalog import Catalog
from afs_mlx.pipelines.convert import ConvertConfig, convert
from afs_mlx.pipelines.export_peft import ExportPeftConfig, ExportPeftResult, export_peft

GOLDEN = Path(__file__).parents[1] / "golden" / "peft"


@pytest.fixture
def run() -> Path:
    """The golden adapter as a run of din."""
    workspace = Workspace.find()
    return convert(ConvertConfig(GOLDEN / "qv-r4", Catalog.load(workspace), workspace, expert="din@v2")).path


def exported(folder: Path, **changes: Any) -> ExportPeftResult:
    return export_peft(ExportPeftConfig(folder, Catalog.load(Workspace.find()).bases, **changes))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_folder_holds_the_adapter_and_its_manifest(run: Path) -> None:
    result = exported(run)
    assert result.path == run / "peft"
    names = {path.name for path in result.path.iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "manifest.json"}
    assert (result.rank, result.alpha, result.layers, result.left_out, result.dtypes) == (4, 8, 8, 0, ("F32",))
    manifest = json.loads((result.path / "manifest.json").read_text())
    assert manifest["made_by"].endswith("export peft")
    assert (manifest["expert"], manifest["version"], manifest["demo"]) == ("din", "v2", True)
    assert manifest["parent"]["folder"] == run.name
    assert manifest["parent"]["sha256"] == sha256_of(run / "adapters.safetensors")
    assert manifest["base"]["lineage"] == "tiny-qwen2"
    assert manifest["adapter"]["targets"] == ["q_proj", "v_proj"]
    hashes = {entry["file"]: entry["sha256"] for entry in manifest["files"]}
    assert hashes["adapter_model.safetensors"] == sha256_of(result.path / "adapter_model.safetensors")


def test_an_earlier_export_is_replaced_and_nothing_else(run: Path, tmp_path: Path) -> None:
    first = exported(run, out=tmp_path / "out")
    second = exported(run, out=tmp_path / "out", base_name="me/base")
    assert (first.path, second.base_name) == (second.path, "me/base")
    assert json.loads((second.path / "adapter_config.json").read_text())["base_model_name_or_path"] == "me/base"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(AfsError, match="something else is there"):
        exported(run, out=tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "mine"
    with pytest.raises(AfsError, match="something else is there"):
        exported(run, out=tmp_path / "mine" / "thesis.txt")
    (tmp_path / "empty").mkdir()
    assert exported(run, out=tmp_path / "empty").path.is_dir()


@pytest.mark.parametrize(
    ("recorded", "name", "notice"),
    [
        ("qwen2.5-coder-3b", "Qwen/Qwen2.5-Coder-3B-Instruct", ""),
        ("mlx-community/Qwen2.5-Coder-7B-Instruct-8bit", "Qwen/Qwen2.5-Coder-7B-Instruct", ""),
        ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct", ""),
        ("tiny-qwen2", "tiny-qwen2", "tiny-qwen2 is no repository"),
        ("someone/Other-4bit", "someone/Other-4bit", "someone/Other-4bit is not in the catalog"),
        ("", None, "the adapter records no base"),
    ],
)
def test_base_is_named_by_its_original(recorded: str, name: str | None, notice: str, run: Path) -> None:
    edit(run / "adapter_config.json", afs={"base": {"id": recorded}})
    (run / "run.json").unlink()
    result = exported(run)
    assert json.loads((result.path / "adapter_config.json").read_text())["base_model_name_or_path"] == name
    assert result.notice.startswith(notice)
    assert bool(result.notice) == bool(notice)


def test_base_of_the_run_is_taken_where_the_adapter_records_none(run: Path) -> None:
    edit(run / "adapter_config.json", afs={})
    edit(run / "run.json", base={"id": "llama-3-8b"})
    assert exported(run).base_name == "meta-llama/Meta-Llama-3-8B-Instruct"


def test_run_that_is_not_finished_is_refused(run: Path) -> None:
    edit(run / "run.json", status="failed")
    with pytest.raises(MissingError, match="holds no finished adapter"):
        exported(run)
    assert not (run / "peft").exists()


def test_peft_folder_is_not_exported_again(tmp_path: Path) -> None:
    with pytest.raises(AfsError, match="this is a PEFT adapter already"):
        exported(GOLDEN / "qv-r4", out=tmp_path / "out")


def test_bad_adapter_leaves_no_folder(run: Path, tmp_path: Path) -> None:
    (run / "adapters.safetensors").write_bytes((run / "adapters.safetensors").read_bytes()[:-8])
    with pytest.raises(AfsError, match="not a complete safetensors file"):
        exported(run, out=tmp_path / "out")
    edit(run / "adapter_config.json", lora_parameters={"rank": 4, "scale": 0, "dropout": 0})
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []
