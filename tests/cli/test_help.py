"""The command line answers at once, everywhere, and says what it can do."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from afs_mlx.cli.app import app

ROOT = Path(__file__).parents[2]
COMMANDS = [
    [],
    ["doctor"],
    ["pull"],
    ["train"],
    ["eval"],
    ["fuse"],
    ["export"],
    ["export", "gguf"],
    ["convert"],
    ["build"],
    ["route"],
    ["route", "train"],
    ["route", "eval"],
    ["chat"],
    ["experts"],
    ["experts", "list"],
    ["experts", "show"],
    ["experts", "check"],
]

PROBE = """
import sys
from afs_mlx.cli.app import main
sys.argv = ["afs-mlx", *sys.argv[1:]]
try:
    main()
except SystemExit as error:
    code = error.code
heavy = sorted({name.partition(".")[0] for name in sys.modules} & {"mlx", "mlx_lm", "transformers", "torch"})
print("HEAVY", heavy, "CODE", code, file=sys.stderr)
"""


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words) or "afs-mlx")
def test_every_command_has_a_help_page(words: list[str]) -> None:
    result = CliRunner().invoke(app, [*words, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.output


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["train", "--help"], 0),
        (["doctor", "--json"], 0),
        (["experts", "list"], 0),
        (["experts", "show", "din"], 0),
        (["experts", "check"], 0),
        (["route", "explain this"], 0),
        (["pull", "no-such-base"], 2),
        (["pull", "qwen2.5-coder-3b", "--dry-run"], 3),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_light_commands_import_no_mlx(words: list[str], code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = subprocess.run([sys.executable, "-c", PROBE, *words], capture_output=True, text=True, cwd=ROOT, check=False)
    assert f"HEAVY [] CODE {code}" in done.stderr


def test_the_documented_commands_are_the_real_ones() -> None:
    done = subprocess.run(
        [sys.executable, "docs/commands.py", "--check"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.output.strip() == "afs-mlx 0.1.0"


def test_doctor_reports_as_json() -> None:
    report = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    assert report["schema_version"] == 1
    assert {check["name"] for check in report["checks"]} == {"mlx", "BLAS", "Asar", "Ollama"}
    assert report["bases"][0]["id"] == "qwen2.5-coder-3b"
    assert all(check["passed"] or check["fix"] for check in report["checks"])


@pytest.mark.parametrize(
    ("program", "timeout_s", "detail"),
    [("raise SystemExit('libmlx is broken')", 30.0, "libmlx is broken"), ("input()", 0.0, "timed out")],
    ids=["broken", "hangs"],
)
def test_doctor_notices_an_mlx_that_does_not_start(
    program: str, timeout_s: float, detail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("afs_mlx.pipelines.diagnose.PROBE", [sys.executable, "-c", program])
    monkeypatch.setattr("afs_mlx.pipelines.diagnose.PROBE_TIMEOUT_S", timeout_s)
    report = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    check = next(check for check in report["checks"] if check["name"] == "mlx")
    assert not check["passed"]
    assert check["detail"].startswith("does not start: ")
    assert detail in check["detail"]
    assert check["fix"]
