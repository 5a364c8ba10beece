"""The commands one after the other on the tiny base, as a person would type them; and Ctrl-C in the middle."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from afs_mlx.cli.app import app
from afs_mlx.core.errors import ExitCode
from afs_mlx.engine.bases.tiny_qwen2 import build_tiny_qwen2
from afs_mlx.engine.training import trainer

GOLDEN = Path(__file__).parents[1] / "golden" / "peft"
ROWS = [{"instruction": f"Clear address ${i:02X}.", "output": f"```asm\n  stz ${i:02x}\n```"} for i in range(16, 32)]
QUICK = ["--set", "epochs=1", "--set", "layers=1", "--set", "rank=2", "--set", "validations_per_epoch=1"]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def run(*words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def test_train_fuse_export_and_chat(rows: Path, tmp_path: Path) -> None:
    trained = json.loads(run("train", "din", "--base", "tiny-qwen2", "--data", str(rows), *QUICK, "--json"))
    folder = Path(trained["run"])
    assert folder.parent == tmp_path / "workspace" / "adapters" / "din"
    assert trained["demo"] is True
    fused = Path(run("fuse", "din", "--base", "tiny-qwen2"))
    assert (fused / "model.safetensors").is_file()
    gguf = Path(run("export", "gguf", "din", "--base", "tiny-qwen2", "--type", "f16"))
    assert gguf.name == "din-v2-f16.gguf"
    assert f"FROM ./{gguf.name}" in gguf.with_name("Modelfile").read_text().replace('"', "")
    result = CliRunner().invoke(
        app, ["chat", "--expert", "din", "--base", "tiny-qwen2", "--max-tokens", "4", "--seed", "1", "hello"]
    )
    assert result.exit_code == 0, result.output
    assert f"adapter {folder.name}" in result.stderr
    assert "(demo)" in result.stderr
    listed = json.loads(run("experts", "show", "din", "--json"))["runs"]
    assert listed == [{"run": folder.name, "status": "finished", "base": "tiny-qwen2"}]


def test_training_that_learns_nothing_says_so_and_what_to_do(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = trainer.train
    monkeypatch.setattr(trainer, "train", lambda *given, **options: replace(real(*given, **options), best_step=0))
    result = CliRunner().invoke(app, ["train", "din", "--base", "tiny-qwen2", "--data", str(rows), *QUICK, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["improved"] is False
    assert "no step was better than the base" in result.stderr
    assert "lower learning_rate" in result.stderr
    fused = CliRunner().invoke(app, ["fuse", "din", "--base", "tiny-qwen2"])
    assert fused.exit_code == ExitCode.MISSING, fused.output


def test_convert_registers_the_adapter(tiny_base: Path, tmp_path: Path) -> None:
    adapter = next(path for path in sorted(GOLDEN.iterdir()) if (path / "adapter_config.json").is_file())
    shown = run("convert", str(adapter), "--base", "tiny-qwen2", "--expert", "veran@v4")
    assert Path(shown).parent == tmp_path / "workspace" / "adapters" / "veran"
    result = CliRunner().invoke(app, ["chat", "--expert", "veran", "--base", "tiny-qwen2", "--max-tokens", "2", "hi"])
    assert result.exit_code == 0, result.output
    assert Path(shown).name in result.stderr


def test_a_base_that_does_not_match_the_adapter(rows: Path, tiny_base: Path, tmp_path: Path) -> None:
    run("train", "din", "--base", "tiny-qwen2", "--data", str(rows), *QUICK)
    other = tmp_path / "other"
    build_tiny_qwen2(other, seed=1)  # the same shapes, other weights
    name = next((tmp_path / "workspace" / "adapters" / "din").iterdir()).name
    words = ["chat", "--expert", "din", "--run", name, "--max-tokens", "2", "hi"]
    result = CliRunner().invoke(app, [*words, "--base", str(other)])
    assert result.exit_code == 1, result.output
    assert f"made for tiny-qwen2, not for {other}" in result.output
    same = CliRunner().invoke(app, [*words, "--base", str(tiny_base)])
    assert same.exit_code == 0, "the same weights in another folder are the same base"


@pytest.mark.parametrize("signals", [1, 2], ids=["once", "twice"])
def test_ctrl_c_while_training(rows: Path, tmp_path: Path, signals: int) -> None:
    words = ["train", "din", "--base", "tiny-qwen2", "--data", str(rows), "--set", "epochs=1000", "--set", "layers=1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "afs_mlx.cli.app", *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ.copy(),
    )
    metrics = tmp_path / "workspace" / "adapters" / "din"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not any(
        p.read_text().count('"train/loss"') > 20 for p in metrics.glob("*/metrics.jsonl")
    ):
        time.sleep(0.1)
    for _ in range(signals):
        process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    run_folder = next(metrics.iterdir())
    status = json.loads((run_folder / "run.json").read_text())["status"]
    if signals == 1:
        assert status == "interrupted"
        assert (run_folder / "adapters.safetensors").is_file()
        assert "finishing this step" in said
    else:
        assert status in ("failed", "interrupted"), "the second signal may come after the step had ended"


def test_ctrl_c_before_the_training_of_a_build_ends_at_once(rows: Path, tmp_path: Path) -> None:
    words = ["build", "din", "--base", "tiny-qwen2", "--data", str(rows), *QUICK]
    process = subprocess.Popen(
        [sys.executable, "-m", "afs_mlx.cli.app", *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ.copy(),
    )
    assert process.stderr is not None
    said = ""
    while "[2/6]" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130, said + rest
    assert "interrupted" in rest
    assert "finishing this step" not in rest
    assert not (tmp_path / "workspace" / "adapters").exists(), "nothing was trained"


def test_build_prints_one_json_object(rows: Path) -> None:
    result = CliRunner().invoke(
        app, ["build", "din", "--base", "tiny-qwen2", "--data", str(rows), "--force", "--json", *QUICK]
    )
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["demo"] is True
    assert Path(record["gguf"]).is_file()
    assert 0 <= record["score_after"]["value"] <= 1
