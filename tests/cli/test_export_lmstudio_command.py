"""`afs-mlx export lmstudio`: which folder it takes, what it prints, and its exit codes."""

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from afs_mlx.cli.errors import handled
from afs_mlx.cli.export_lmstudio import lmstudio
from afs_mlx.core.errors import ExitCode
from afs_mlx.core.files import write_json
from afs_mlx.core.paths import Workspace
from afs_mlx.engine.adapters.format import AdapterConfig, LoraParameters, write_adapter

app = typer.Typer()
app.command()(handled(lmstudio))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    folder = tmp_path / "user" / ".lmstudio" / "models"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.usefixtures("models")
def test_a_model_folder(tiny_base: Path, models: Path) -> None:
    result = run(str(tiny_base))
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(models / "afs-mlx" / "tiny-qwen2")
    assert "LM Studio lists it as afs-mlx/tiny-qwen2" in result.stderr
    assert "system prompt" not in result.stderr


def test_a_version_that_is_a_prompt_on_a_base(models: Path) -> None:
    result = run("din@v3-fewshot", "--base", "tiny-qwen2", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    placed = models / "afs-mlx" / "din-v3-fewshot-demo"
    assert (record["kind"], record["key"], record["folder"]) == ("MLX", "afs-mlx/din-v3-fewshot-demo", str(placed))
    assert Path(record["system_prompt"]).read_text().strip()
    assert record["linked_bytes"] == (placed / "model.safetensors").stat().st_size
    assert any("8 solved examples" in text for text in record["notices"])
    assert not record["replaced"]
    shown = run("din@v3-fewshot", "--base", "tiny-qwen2")
    assert "takes no system prompt from a model" in shown.stderr
    assert record["system_prompt"] in shown.stderr


def test_a_run_that_is_not_fused(models: Path) -> None:
    folder = Workspace.find().adapters / "din" / "v2-tiny"
    folder.mkdir(parents=True)
    key = "self_attn.q_proj"
    tensors = {f"model.layers.0.{key}.lora_a": np.ones((64, 2)), f"model.layers.0.{key}.lora_b": np.ones((2, 64))}
    parameters = LoraParameters(rank=2, scale=1.0, dropout=0.0, keys=(key,))
    write_adapter(folder, tensors, AdapterConfig(num_layers=-1, lora_parameters=parameters))
    record = {"expert": "din", "version": "v2", "status": "finished", "base": {"id": "tiny-qwen2"}}
    write_json(folder / "run.json", record)
    result = run("din", "--run", "v2-tiny")
    assert result.exit_code == ExitCode.MISSING
    assert "this run is not fused yet" in result.stderr
    assert "afs-mlx fuse din" in result.stderr
    fused = Workspace.find().fused / "din" / "v2-tiny"
    fused.mkdir(parents=True)
    write_json(fused / "manifest.json", {"parent": {"sha256": "0" * 64}})
    result = run("din", "--run", "v2-tiny")
    assert result.exit_code == ExitCode.MISSING
    assert "this run was trained on since it was fused" in result.stderr
    assert list(models.iterdir()) == []


def test_no_run_no_gguf_no_lm_studio(
    models: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run("din@v2", "--base", "tiny-qwen2")
    assert result.exit_code == ExitCode.MISSING
    assert "afs-mlx train din@v2" in result.stderr
    result = run("general", "--base", "tiny-qwen2", "--gguf")
    assert result.exit_code == ExitCode.MISSING
    assert "afs-mlx export gguf makes one" in result.stderr
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    result = run(str(tiny_base))
    assert result.exit_code == ExitCode.MISSING
    assert str(tmp_path / "nobody" / ".lmstudio") in result.stderr


def test_a_name_that_is_taken(models: Path, tiny_base: Path) -> None:
    theirs = models / "afs-mlx" / "tiny-qwen2"
    theirs.mkdir(parents=True)
    (theirs / "config.json").write_text("theirs")
    result = run(str(tiny_base))
    assert result.exit_code == ExitCode.REFUSED
    assert (theirs / "config.json").read_text() == "theirs"
    assert run(str(tiny_base), "--force", "--copy").exit_code == 0
    assert not (theirs / "model.safetensors").samefile(tiny_base / "model.safetensors")
