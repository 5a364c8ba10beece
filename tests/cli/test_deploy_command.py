"""`afs-mlx deploy`: what is shown, the exit codes, `--json`."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from afs_mlx.cli.deploy import deploy
from afs_mlx.cli.errors import handled
from afs_mlx.core.errors import ExitCode
from afs_mlx.core.paths import Workspace

sys.path.insert(0, str(Path(__file__).parents[1] / "clients"))
from ollama_server import OllamaServer, running

app = typer.Typer()
app.command()(handled(deploy))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["din@v3-fewshot", "--base", "tiny-qwen2", *arguments])


@pytest.fixture
def server() -> Iterator[OllamaServer]:
    with running(OllamaServer()) as found:
        yield found


def test_refused_with_the_reason_and_the_command(server: OllamaServer) -> None:
    result = run("--host", server.address)
    assert result.exit_code == ExitCode.REFUSED
    assert "[1/4] verdict: what the newest evaluation says" in result.stderr
    assert "against it: din@v3-fewshot was never evaluated on optimisation" in result.stderr
    assert "fix: afs-mlx eval din@v3-fewshot --base tiny-qwen2; --force deploys it all the same" in result.stderr
    assert result.stdout == ""
    assert server.calls == []


def test_a_dry_run_that_would_be_refused(server: OllamaServer) -> None:
    result = run("--dry-run")
    assert result.exit_code == ExitCode.REFUSED
    assert "would be refused, --force overrides it" in result.stderr
    assert "/api/create" in result.stdout
    assert "tiny-qwen2-f16.gguf (not there yet)" in result.stdout
    assert not Workspace.find().fused.exists()
    forced = run("--dry-run", "--force")
    assert forced.exit_code == 0
    assert "would be overridden by --force" in forced.stderr


def test_forced_and_said(server: OllamaServer) -> None:
    result = run("--host", server.address, "--force", "--json")
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["tag"] == "din-v3-fewshot-demo"
    assert record["forced"] is True
    assert record["verdict"]["passed"] is False
    assert record["overrode"] == "; ".join(record["verdict"]["reasons"])
    assert Path(record["record"]).is_file()
    shown = run("--host", server.address, "--force")
    assert shown.stdout.strip() == "din-v3-fewshot-demo"
    assert "deployed by --force, which is recorded: din@v3-fewshot was never evaluated" in shown.stderr


def test_an_unknown_type_is_a_usage_error() -> None:
    result = run("--type", "q8")
    assert result.exit_code == ExitCode.USAGE
    assert "did you mean 'q8_0'?" in result.stderr
