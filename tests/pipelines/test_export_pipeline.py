"""Model folder → verified GGUF: what failed a check gets no name, and what is on disk is known for what it is."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from afs_mlx.core.errors import AfsError, MissingError
from afs_mlx.core.files import sha256_of
from afs_mlx.engine.bases.location import weights_hash
from afs_mlx.engine.bases.tiny_qwen2 import build_tiny_qwen2
from afs_mlx.engine.gguf import verification as engine_verification
from afs_mlx.engine.gguf import writer
from afs_mlx.pipelines.export import ExportConfig, ExportResult, current_export, export
from afs_mlx.schema.expert import Shot
from afs_mlx.schema.sampling import Sampling
from afs_mlx.schema.verification import Check, Verification


@pytest.fixture
def model(tiny_base: Path, tmp_path: Path) -> Path:
    """A model folder that a test may change."""
    return Path(shutil.copytree(tiny_base, tmp_path / "model"))


def exported(folder: Path, **changes: Any) -> ExportResult:
    config = ExportConfig(folder, name="din-v2", file_type="f16", system="You are Din.", sampling=Sampling())
    return export(replace(config, **changes), lambda done, total: None)


def quickly(folder: Path, **changes: Any) -> ExportResult:
    return exported(folder, verify="none", **changes)


def manifest_of(result: ExportResult) -> dict[str, Any]:
    return dict(json.loads(result.gguf.with_name("manifest.json").read_text()))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is written with a flipped byte in its last tensor, and nothing notices while writing."""
    real = writer.export_gguf

    def damaged(folder: Path, out: Path, *words: Any, **options: Any) -> writer.GgufReport:
        report = real(folder, out, *words, **options)
        data = bytearray(out.read_bytes())
        data[-1000] ^= 0x40
        out.write_bytes(data)
        return report

    monkeypatch.setattr(writer, "export_gguf", damaged)


def test_the_checks_are_in_result_and_manifest(model: Path) -> None:
    heard: list[Check] = []
    config = ExportConfig(model, name="din-v2", file_type="f16", system="You are Din.", sampling=Sampling())
    result = export(config, lambda done, total: None, heard.append)
    assert result.verification is not None
    assert result.verification.passed
    assert result.verification.complete
    assert result.verification.depth == "quick"
    assert tuple(heard) == result.verification.checks
    manifest = manifest_of(result)
    assert Verification.model_validate(manifest["verification"]) == result.verification
    assert manifest["weights_sha256"] == manifest["source"]["weights_sha256"] == weights_hash(model)
    assert manifest["source"]["files"]["tokenizer.json"] == sha256_of(model / "tokenizer.json")
    assert manifest["gguf"]["sha256"] == sha256_of(result.gguf)
    assert names(result.gguf.parent) == {"din-v2-f16.gguf", "Modelfile", "manifest.json"}


def test_a_file_that_fails_gets_no_name(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damage(monkeypatch)
    with pytest.raises(AfsError, match="not what the model folder is") as caught:
        exported(model)
    assert "tensors: " in caught.value.what
    assert caught.value.where.endswith("din-v2-f16.gguf")
    assert "--no-verify" in caught.value.fix
    assert names(model / "gguf") == set()
    assert current_export(model, "din-v2", "f16") is None


def test_a_file_that_fails_leaves_the_one_before(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = quickly(model)
    kept = {path.name: path.read_bytes() for path in result.gguf.parent.iterdir()}
    damage(monkeypatch)
    with pytest.raises(AfsError, match="not what the model folder is"):
        exported(model, system="Other.")
    assert {path.name: path.read_bytes() for path in result.gguf.parent.iterdir()} == kept


def test_no_check_is_made_where_none_is_asked(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damage(monkeypatch)
    result = quickly(model)
    assert result.verification is None
    assert manifest_of(result)["verification"] is None


def test_the_depth_is_handed_on(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def verify(path: Path, *words: Any, depth: str, **options: Any) -> Verification:
        asked.append(depth)
        return Verification(depth="thorough", checks=(), elapsed_s=0)

    monkeypatch.setattr(engine_verification, "verify_gguf", verify)
    assert exported(model, verify="thorough").verification is not None
    assert asked == ["thorough"]


def test_errors_name_the_file_that_a_person_knows(model: Path) -> None:
    with pytest.raises(AfsError) as caught:
        exported(model, file_type="q3")
    assert "q3" in str(caught.value)
    (model / "gguf" / "din-v2-f16.gguf").mkdir(parents=True)
    with pytest.raises(AfsError) as caught:
        quickly(model)
    assert "/.din" not in str(caught.value)


def test_without_a_model_there_is_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no fused model"):
        exported(tmp_path)


# A base that several experts share


def test_a_shared_file_has_its_modelfile_elsewhere(model: Path, tmp_path: Path) -> None:
    shared = tmp_path / "fused" / "general" / "tiny" / "gguf"
    modelfile = tmp_path / "fused" / "din" / "v3-fewshot-tiny" / "Modelfile"
    shots = (Shot(user="lda #$00", assistant="stz"),)
    result = quickly(model, name="tiny", out_folder=shared, modelfile=modelfile, shots=shots, license_text="mit")
    assert result.gguf == shared / "tiny-f16.gguf"
    assert result.modelfile == modelfile
    assert not (model / "gguf").exists(), "the base's folder is not ours"
    text = modelfile.read_text()
    assert "FROM ./../../general/tiny/gguf/tiny-f16.gguf" in text.replace('"', "")
    assert "MESSAGE assistant stz" in text.replace('"', "")
    assert "LICENSE mit" in text.replace('"', "")
    assert names(shared) == {"tiny-f16.gguf", "manifest.json"}


def test_the_caller_may_write_the_modelfile(model: Path) -> None:
    result = quickly(model, write_modelfile=False, system='no Modelfile holds """ this')
    assert not result.modelfile.exists()
    assert result.gguf.is_file()


# What is on disk


def test_the_current_file_is_known(model: Path) -> None:
    assert current_export(model, "din-v2", "f16") is None
    result = exported(model)
    assert current_export(model, "din-v2", "f16") == result
    assert current_export(model, "din-v2", "q8_0") is None
    assert current_export(model, "din-v3", "f16") is None


def test_every_type_in_a_folder_is_known(model: Path) -> None:
    first, second = quickly(model), quickly(model, file_type="q8_0")
    assert current_export(model, "din-v2", "f16") == first
    assert current_export(model, "din-v2", "q8_0") == second
    assert set(manifest_of(second)["exports"]) == {"din-v2-f16.gguf", "din-v2-q8_0.gguf"}
    first.gguf.unlink()
    assert current_export(model, "din-v2", "f16") is None
    quickly(model, file_type="q8_0")
    assert set(manifest_of(second)["exports"]) == {"din-v2-q8_0.gguf"}


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer_config.json", "config.json", "chat_template.jinja"])
def test_a_changed_model_makes_it_stale(model: Path, tmp_path: Path, file: str) -> None:
    quickly(model)
    if file == "model.safetensors":
        build_tiny_qwen2(tmp_path / "other", seed=1)
        shutil.copy(tmp_path / "other" / file, model / file)
    else:
        with (model / file).open("a") as text:
            text.write("\n")
    assert current_export(model, "din-v2", "f16") is None


def test_a_touched_file_is_read_again(model: Path) -> None:
    result = quickly(model)
    os.utime(result.gguf, (1, 1))
    assert current_export(model, "din-v2", "f16") == result
    data = bytearray(result.gguf.read_bytes())
    data[-1000] ^= 0x40
    result.gguf.write_bytes(data)
    assert current_export(model, "din-v2", "f16") is None


def test_nothing_large_is_read_to_know_it(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = quickly(model)
    read: list[str] = []
    monkeypatch.setattr("afs_mlx.pipelines.export.sha256_of", lambda path: read.append(path.name) or sha256_of(path))
    monkeypatch.setattr("afs_mlx.engine.bases.location.sha256_of", lambda path: read.append(path.name))
    assert current_export(model, "din-v2", "f16") == result
    assert read
    assert not {name for name in read if name.endswith((".gguf", ".safetensors"))}


@pytest.mark.parametrize("change", ["cut", "no JSON", "strange exports", "strange entry", "strange checks"])
def test_a_damaged_record_means_to_make_it_again(model: Path, change: str) -> None:
    result = quickly(model)
    path = result.gguf.with_name("manifest.json")
    manifest = json.loads(path.read_text())
    entry = manifest["exports"]["din-v2-f16.gguf"]
    if change == "cut":
        result.gguf.write_bytes(result.gguf.read_bytes()[:-100])
    elif change == "strange exports":
        manifest["exports"] = [3]
    elif change == "strange entry":
        del entry["tensors"]
    elif change == "strange checks":
        entry["verification"] = {"checks": 3}
    path.write_text("{" if change == "no JSON" else json.dumps(manifest))
    assert current_export(model, "din-v2", "f16") is None
    assert current_export(model, "din-v2", "f16") != quickly(model)
    assert current_export(model, "din-v2", "f16") is not None
