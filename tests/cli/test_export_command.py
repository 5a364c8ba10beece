"""`export gguf` as a person types it: text, JSON, checks on the screen, refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from afs_mlx.cli.app import app
from afs_mlx.cli.render.export import ChecksView, words
from afs_mlx.engine.bases.tiny_qwen2 import build_tiny_qwen2
from afs_mlx.engine.gguf.verification import verifying
from afs_mlx.pipelines import export as pipeline
from afs_mlx.schema.verification import Check, Verification

CHECKS = ("structure", "tensors", *verifying.CONSUMER_CHECKS)
ADAPTER = Path(__file__).parents[1] / "golden" / "peft" / "qv-r4"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    build_tiny_qwen2(tmp_path / "model")
    return tmp_path / "model"


def run(*words: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["export", "gguf", *words])
    assert result.exit_code == code, result.output
    return result


def test_the_checks_are_shown_and_the_path_is_the_answer(model: Path) -> None:
    result = run(str(model), "--type", "f16")
    assert Path(result.stdout.strip()) == model / "gguf" / "model-f16.gguf"
    lines = [line.split() for line in result.stderr.splitlines() if line.startswith("    ")]
    assert len(lines) == len(CHECKS)
    for name, line in zip(CHECKS, lines, strict=True):
        assert line[: len(name.split()) + 1] == [*name.split(), "passed"]
    assert "verify (quick)" in result.stderr
    assert "600 strings, 0 different" in result.stderr
    assert "verified in" in result.stderr
    assert "with xllamacpp" in result.stderr
    assert "\x1b" not in result.stderr, "plain without a terminal"


def test_json_has_the_checks(model: Path) -> None:
    record = json.loads(run(str(model), "--type", "q4_0", "--json").stdout)
    assert record["schema_version"] == 1
    assert Path(record["gguf"]).name == "model-q4_0.gguf"
    verification = Verification.model_validate(record["verification"])
    assert verification.passed
    assert [check.name for check in verification.checks] == list(CHECKS)


def test_not_verified_is_said(model: Path) -> None:
    result = run(str(model), "--type", "f16", "--no-verify")
    assert "the file was not verified" in result.stderr
    assert "verify (" not in result.stderr
    assert json.loads(run(str(model), "--type", "f16", "--no-verify", "--json").stdout)["verification"] is None


def test_a_folder_whose_name_ollama_would_not_take(model: Path) -> None:
    named = model.rename(model.with_name("m" * 120))
    assert run(str(named), "--type", "f16", "--no-verify").stdout.strip().endswith("m-f16.gguf")


def test_thorough_is_handed_on(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = pipeline.export

    def export(config: pipeline.ExportConfig, *listeners: Any) -> pipeline.ExportResult:
        asked.append(config.verify)
        return real(config, *listeners)

    monkeypatch.setattr(pipeline, "export", export)
    monkeypatch.setitem(verifying.EFFORTS, "thorough", verifying.EFFORTS["quick"])
    assert "verify (thorough)" in run(str(model), "--type", "f16", "--thorough").stderr
    assert asked == ["thorough"]


def test_without_llama_cpp_the_remedy_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "consumer_version", lambda: "")
    result = run(str(model), "--type", "f16")
    assert "notice: not run: loading, tokens, chat template, end tokens, log-probabilities, greedy" in result.stderr
    assert "pip install 'afs-mlx[verify]'" in result.stderr
    assert (model / "gguf" / "model-f16.gguf").is_file()


def test_a_failed_check_is_an_error_and_leaves_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = Check(name="tokens", status="failed", reason="3 of 600 strings differ: '\\u65e5'")
    monkeypatch.setattr(verifying, "check_tokens", lambda *words: failed)
    result = run(str(model), "--type", "f16", code=1)
    assert "tokens: 3 of 600 strings differ" in result.stderr
    assert "fix: " in result.stderr
    assert result.stdout == ""
    assert list((model / "gguf").iterdir()) == []


def test_out_names_the_folder(model: Path, tmp_path: Path) -> None:
    result = run(str(model), "--type", "f16", "--no-verify", "--out", str(tmp_path / "elsewhere"))
    assert Path(result.stdout.strip()) == tmp_path / "elsewhere" / "model-f16.gguf"
    assert (tmp_path / "elsewhere" / "Modelfile").is_file()
    assert not (model / "gguf").exists()


def test_an_expert_that_only_has_a_prompt_shares_the_base_s_file(tmp_path: Path) -> None:
    fewshot = run("din@v3-fewshot", "--base", "tiny-qwen2", "--no-verify")
    path = Path(fewshot.stdout.strip())
    fused = tmp_path / "workspace" / "fused"
    assert path == fused / "general" / "tiny-qwen2" / "gguf" / "tiny-qwen2-f16.gguf"
    modelfile = fused / "din" / "v3-fewshot-tiny-qwen2" / "Modelfile"
    assert "MESSAGE user" in modelfile.read_text()
    assert (modelfile.parent / "../../general/tiny-qwen2/gguf/tiny-qwen2-f16.gguf").resolve() == path
    assert run("general", "--base", "tiny-qwen2", "--no-verify").stdout == fewshot.stdout


def test_the_adapter_alone() -> None:
    CliRunner().invoke(app, ["convert", str(ADAPTER), "--expert", "din@v2"])
    result = run("din", "--base", "tiny-qwen2", "--adapter")
    path = Path(result.stdout.strip())
    assert path.is_file()
    assert path.name.endswith("-adapter-f16.gguf")
    assert "export the adapter of din-v2 as f16 GGUF" in result.stderr
    assert "verified in" in result.stderr
    record = json.loads(run("din", "--base", "tiny-qwen2", "--adapter", "--type", "f32", "--json").stdout)
    assert Path(record["gguf"]).name.endswith("-adapter-f32.gguf")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("din", "--type", "q3"), 2, "there is no type 'q3'"),
        (("din", "--type", "q8"), 2, "did you mean 'q8_0'?"),
        (("din", "--no-verify", "--thorough"), 2, "thoroughly or not at all"),
        (("din", "--adapter", "--type", "q8_0"), 2, "an adapter is not written as q8_0"),
        (("din", "--base", "tiny-qwen2"), 3, "has no adapter for tiny-qwen2"),
    ],
)
def test_refusals(words: tuple[str, ...], code: int, message: str) -> None:
    assert message in run(*words, code=code).stderr


def test_a_check_s_words_are_short_and_plain() -> None:
    hostile = Check(name="tokens", status="failed", reason="\x1b[31m" + "x" * 500 + "\n" + "y")
    assert "\x1b" not in words(hostile)
    assert "\n" not in words(hostile)
    assert len(words(hostile)) < 250
    assert words(Check(name="greedy", status="not run", reason="said once at the end")) == ""


def test_the_view_says_what_was_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    skipped = Check(name="tokens", status="not run", reason="no llama.cpp")
    view = ChecksView("quick")
    view(skipped)
    view.end(Verification(depth="quick", checks=(skipped,), elapsed_s=1.0))
    said = capsys.readouterr().err
    assert "not run: tokens: no llama.cpp" in said
