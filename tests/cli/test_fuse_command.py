"""`afs-mlx fuse`: its options, what it prints, and exit code 4."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from afs_mlx.cli.app import app
from afs_mlx.core.errors import ExitCode

QUICK = ["--set", "epochs=1", "--set", "layers=1", "--set", "rank=2", "--set", "validations_per_epoch=1"]


def run(*words: str, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


@pytest.fixture
def trained(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    lines = [{"instruction": f"Clear ${i:02X}.", "output": f"```asm\n  stz ${i:02x}\n```"} for i in range(16, 32)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run("train", "din", "--base", "tiny-qwen2", "--data", str(rows), *QUICK)


@pytest.mark.usefixtures("trained")
def test_fuse_quantises_and_reports() -> None:
    stdout, _ = run("fuse", "din", "--base", "tiny-qwen2", "--quantize", "8", "--json")
    found = json.loads(stdout)
    assert json.loads((Path(found["folder"]) / "config.json").read_text())["quantization"]["bits"] == 8
    assert found["survival"]["median"] > 0.9
    assert found["top1"] > 0.75
    assert found["prompts"].endswith("data/splits/rows/valid.jsonl")
    assert found["held_back"] == ""
    stdout, stderr = run("fuse", "din", "--base", "tiny-qwen2")
    assert Path(stdout.strip()).is_dir()
    assert "100.0% of" in stderr
    assert "of the update survive" in stderr


@pytest.mark.usefixtures("trained")
def test_a_bad_fuse_is_held_back_with_exit_code_4(tmp_path: Path) -> None:
    words = ["fuse", "din", "--base", "tiny-qwen2", "--quantize", "mixed_2_6"]
    _, stderr = run(*words, code=ExitCode.REFUSED)
    assert "the fused model is held back" in stderr
    assert list((tmp_path / "workspace" / "fused" / "din").iterdir()) == []
    stdout, stderr = run(*words, "--force", "--json")
    assert "kept by --force" in stderr
    found = json.loads(stdout)
    assert found["held_back"]
    assert json.loads((Path(found["folder"]) / "manifest.json").read_text())["agreement"]["forced"] is True


@pytest.mark.parametrize(
    ("option", "value", "near"), [("--quantize", "mixed_4_5", "mixed_4_6"), ("--changed", "4", "known: 8, 16, same")]
)
def test_an_unknown_way_of_storing_is_a_usage_error(option: str, value: str, near: str) -> None:
    _, stderr = run("fuse", "din", option, value, code=ExitCode.USAGE)
    assert near in stderr
