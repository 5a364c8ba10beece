"""A run's adapter alone as GGUF: checked by llama.cpp, with a manifest that names what it is made of."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from afs_mlx.core.errors import AfsError, MissingError
from afs_mlx.core.files import sha256_of, write_json
from afs_mlx.core.paths import Workspace
from afs_mlx.engine.adapters.format import AdapterConfig, LoraParameters, write_adapter
from afs_mlx.engine.adapters.linears import base_linears
from afs_mlx.engine.gguf import adapter_check
from afs_mlx.pipelines.export_adapter import (
    AdapterTensorWritten,
    Checking,
    ExportAdapterConfig,
    ExportAdapterEvent,
    export_adapter,
)
from afs_mlx.runs.folder import WEIGHTS
from afs_mlx.schema.verification import Check

BASE = {"id": "tiny-qwen2", "revision": "", "weights_sha256": "0" * 64}


@pytest.fixture
def config(tiny_base: Path) -> ExportAdapterConfig:
    """A finished run whose adapter changes q and v of every block."""
    folder = Workspace.find().adapters / "din" / "v2-tiny"
    rng = np.random.default_rng(1)
    tensors = {}
    for path, (rows, columns) in base_linears(tiny_base).shapes.items():
        if path.endswith(("q_proj", "v_proj")):
            tensors[f"{path}.lora_a"] = 0.2 * rng.standard_normal((columns, 4))
            tensors[f"{path}.lora_b"] = 0.2 * rng.standard_normal((4, rows))
    folder.mkdir(parents=True)
    keys = ("self_attn.q_proj", "self_attn.v_proj")
    parameters = LoraParameters(rank=4, scale=4.0, dropout=0.0, keys=keys)
    write_adapter(folder, tensors, AdapterConfig(num_layers=-1, lora_parameters=parameters))
    write_json(folder / "run.json", {"expert": "din", "version": "v2", "status": "finished", "demo": True})
    return ExportAdapterConfig(folder, tiny_base, BASE, "din-v2")


def ignore(event: ExportAdapterEvent) -> None:
    """Nobody watches."""


def test_the_file_its_check_and_its_manifest(config: ExportAdapterConfig) -> None:
    events: list[ExportAdapterEvent] = []
    result = export_adapter(config, events.append)
    assert result.gguf == config.adapter / "gguf" / "din-v2-adapter-f16.gguf"
    assert result.sha256 == sha256_of(result.gguf)
    tensors = [event for event in events if isinstance(event, AdapterTensorWritten)]
    assert tensors[-1].done == tensors[-1].total == result.tensors
    assert isinstance(events[-1], Checking)
    assert result.verification is not None
    by_name = {check.name: check for check in result.verification.checks}
    assert by_name["tensors"].status == by_name["log-probabilities"].status == "passed"
    figures = by_name["log-probabilities"].figures
    print(figures)
    assert result.verification.consumer.startswith("xllamacpp ")
    record = json.loads(result.manifest.read_text())
    assert record["made_by"].endswith("export gguf --adapter")
    assert (record["expert"], record["version"], record["demo"], record["base"]) == ("din", "v2", True, BASE)
    assert record["parent"]["sha256"] == sha256_of(config.adapter / WEIGHTS)
    assert record["gguf"]["file"] == result.gguf.name
    assert record["gguf"]["sha256"] == result.sha256
    assert record["verification"]["consumer"] == result.verification.consumer
    assert {path.name for path in result.gguf.parent.iterdir()} == {result.gguf.name, result.manifest.name}


def test_both_types_lie_side_by_side(config: ExportAdapterConfig) -> None:
    for file_type in ("f16", "f32"):
        export_adapter(replace(config, file_type=file_type, verify="none"), ignore)
    names = {path.name for path in (config.adapter / "gguf").iterdir()}
    stems = ("din-v2-adapter-f16", "din-v2-adapter-f32")
    assert names == {f"{stem}{suffix}" for stem in stems for suffix in (".gguf", ".json")}


def test_a_file_that_llama_cpp_reads_otherwise_is_not_kept(
    config: ExportAdapterConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if rows were reordered where they should not be."""
    asked = adapter_check._in_mlx

    def other(base: Path, adapter: Path | None, prompts: list[list[int]]) -> list[adapter_check.Floats]:
        return [row[::-1] for row in asked(base, adapter, prompts)]

    monkeypatch.setattr(adapter_check, "_in_mlx", other)
    with pytest.raises(AfsError, match=r"log-probabilities: llama.cpp and mlx differ by"):
        export_adapter(config, ignore)
    assert list((config.adapter / "gguf").iterdir()) == []
    before = export_adapter(replace(config, verify="none"), ignore)
    with pytest.raises(AfsError, match="not kept"):
        export_adapter(config, ignore)
    assert sha256_of(before.gguf) == before.sha256


def test_an_adapter_too_weak_to_tell_is_reported(config: ExportAdapterConfig) -> None:
    weights = {
        name: array * (1e-3 if name.endswith("lora_b") else 1)
        for name, array in load_file(config.adapter / WEIGHTS).items()
    }
    save_file(weights, config.adapter / WEIGHTS)
    result = export_adapter(config, ignore)
    assert result.verification is not None
    assert result.verification.checks[1].status == "reported"
    assert "too little to tell" in result.verification.checks[1].reason


@pytest.mark.parametrize("why", ["not installed", "too large"])
def test_what_was_not_checked_says_why(config: ExportAdapterConfig, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    if why == "too large":
        monkeypatch.setattr(adapter_check, "QUICK_BASE_BYTES", 1000)
    else:
        monkeypatch.setattr(adapter_check, "PACKAGE", "there-is-no-such-package")
    result = export_adapter(config, ignore)
    assert result.gguf.is_file()
    assert result.verification is not None
    check: Check = result.verification.checks[1]
    assert check.status == "not run"
    assert ("as float32 GGUF" if why == "too large" else "is not installed") in check.reason


def test_llama_cpp_that_refuses_the_file_says_why(config: ExportAdapterConfig, tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF, but no more")
    found = adapter_check.check_adapter_gguf(
        tmp_path / "broken.gguf", config.adapter, config.base_folder, "f16", "quick"
    )
    assert found.failed[0].reason.startswith("llama.cpp: ")


def test_an_unfinished_run_is_named(config: ExportAdapterConfig) -> None:
    write_json(config.adapter / "run.json", {"expert": "din", "status": "running"})
    with pytest.raises(MissingError, match=r"no finished adapter \(running\)"):
        export_adapter(config, ignore)
