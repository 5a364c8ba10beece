"""`afs-mlx export ollama`, run against a server that speaks Ollama's protocol."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from afs_mlx.cli.errors import handled
from afs_mlx.cli.export_ollama import ollama
from afs_mlx.core.errors import ExitCode
from afs_mlx.core.files import sha256_of
from afs_mlx.core.paths import Workspace
from afs_mlx.engine.bases.tiny_qwen2 import DEFAULT_SYSTEM
from afs_mlx.engine.gguf.verification import verifying
from afs_mlx.pipelines.export import ExportConfig, export
from afs_mlx.schema.sampling import Sampling

sys.path.insert(0, str(Path(__file__).parents[1] / "clients"))
from ollama_server import OllamaServer, running

app = typer.Typer()
app.command()(handled(ollama))


@pytest.fixture
def server() -> Iterator[OllamaServer]:
    with running(OllamaServer()) as found:
        yield found


def call(server: OllamaServer, *arguments: Any) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)], env={"OLLAMA_HOST": server.address, "COLUMNS": "400"})


def test_a_prompt_on_the_bare_base_from_end_to_end(server: OllamaServer, tiny_base: Path) -> None:
    result = call(server, "general", "--base", tiny_base, "--type", "f16", "--name", "tiny")
    assert result.exit_code == 0, result.output
    assert result.stdout == "tiny\n"
    assert "it answers: I count cycles." in result.stderr
    assert "ollama run tiny" in result.stderr
    model = server.models["tiny:latest"]
    (gguf,) = Workspace.find().fused.rglob("*.gguf")
    assert model["files"] == {"model.gguf": f"sha256:{sha256_of(gguf)}"}
    assert model["parameters"]["stop"][0] == "<|im_end|>"

    listed = call(server, "--list")
    assert listed.stdout.startswith(f"tiny  there  {server.address}")
    (entry,) = json.loads(call(server, "--list", "--json").stdout)["models"]
    assert entry["gguf_sha256"] == sha256_of(gguf)
    assert entry["state"] == "there"

    removed = call(server, "--remove", "tiny")
    assert removed.stdout == "tiny\n"
    assert server.models == {}
    assert call(server, "--list").stdout == ""


def test_a_dry_run_shows_calls_sizes_and_modelfile(server: OllamaServer, tiny_base: Path) -> None:
    result = call(server, "general", "--base", tiny_base, "--type", "f16", "--dry-run")
    assert result.exit_code == 0, result.output
    for part in ("/api/version", "POST     /api/create", "not there yet", "TEMPLATE", 'PARAMETER stop "<|im_end|>"'):
        assert part in result.stdout
    assert server.calls == []
    assert not Workspace.find().fused.exists()


def test_json_of_a_dry_run(server: OllamaServer, tiny_base: Path) -> None:
    result = call(server, "general", "--base", tiny_base, "--type", "f16", "--dry-run", "--json")
    shown = json.loads(result.stdout)
    assert shown["registered"]["calls"][0] == {
        "method": "GET",
        "path": "/api/version",
        "body": None,
        "size_bytes": None,
    }
    assert shown["registered"]["modelfile"].startswith("FROM ")


def test_a_stranger_stays_and_the_exit_code_says_refused(server: OllamaServer, tiny_base: Path) -> None:
    server.add("tiny", system="Somebody's own.")
    arguments = ("general", "--base", tiny_base, "--type", "f16", "--name", "tiny")
    refused = call(server, *arguments)
    assert refused.exit_code == ExitCode.REFUSED
    assert "--force" in refused.stderr
    assert call(server, "--remove", "tiny").exit_code == ExitCode.REFUSED
    assert server.models["tiny:latest"]["system"] == "Somebody's own."
    assert call(server, *arguments, "--force").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name one thing to do"),
        (("din", "--list"), "name one thing to do"),
        (("--list", "--remove", "x"), "name one thing to do"),
        (("din", "--type", "q9"), "there is no type 'q9'"),
        (("--remove", "a b"), "is no name for a model"),
        (("--list", "--dry-run"), "only a registration has a dry run"),
    ],
)
def test_wrong_use(server: OllamaServer, arguments: tuple[str, ...], message: str) -> None:
    result = call(server, *arguments)
    assert result.exit_code == ExitCode.USAGE
    assert message in result.stderr


def test_control_characters_of_a_server_do_not_reach_the_terminal(server: OllamaServer, tiny_base: Path) -> None:
    server.faults.answer = "\x1b]0;owned\x07\x1b[31mred"
    result = call(server, "general", "--base", tiny_base, "--type", "f16")
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output
    assert "\x07" not in result.output


def test_an_empty_list_says_how_to_fill_it(server: OllamaServer) -> None:
    result = call(server, "--list")
    assert result.exit_code == 0
    assert "nothing was deployed" in result.stderr


def test_a_dry_run_removes_nothing(server: OllamaServer, tiny_base: Path) -> None:
    assert call(server, "general", "--base", tiny_base, "--type", "f16", "--name", "tiny").exit_code == 0
    result = call(server, "--remove", "tiny", "--dry-run")
    assert result.exit_code == ExitCode.USAGE
    assert "tiny:latest" in server.models
    assert call(server, "--list").stdout.startswith("tiny  there")


def test_the_dry_runs_modelfile_is_the_one_that_is_written(server: OllamaServer, tiny_base: Path) -> None:
    arguments = ("din@v3-fewshot", "--base", tiny_base, "--type", "f16")
    planned = json.loads(call(server, *arguments, "--dry-run", "--json").stdout)["registered"]["modelfile"]
    assert call(server, *arguments).exit_code == 0
    (written,) = Workspace.find().fused.rglob("Modelfile")
    assert written.read_text() == planned
    gguf = written.parent / planned.splitlines()[0].removeprefix('FROM "').removesuffix('"')
    assert gguf.is_file()


def test_an_expert_without_a_system_text_answers_under_the_bases_own(server: OllamaServer, tiny_base: Path) -> None:
    assert call(server, "general", "--base", tiny_base, "--type", "f16").exit_code == 0
    assert server.models["general:latest"]["system"] == DEFAULT_SYSTEM


@pytest.mark.parametrize("reason", ["no server", "a stranger's name"])
def test_what_cannot_be_registered_is_said_before_the_work(server: OllamaServer, tiny_base: Path, reason: str) -> None:
    server.add("general")
    host = ("--host", "127.0.0.1:9") if reason == "no server" else ()
    result = call(server, "general", "--base", tiny_base, "--type", "f16", *host)
    assert result.exit_code == (ExitCode.MISSING if host else ExitCode.REFUSED)
    assert not Workspace.find().fused.exists()


def test_a_gguf_that_was_never_verified_is_told(server: OllamaServer, tiny_base: Path) -> None:
    folder = Workspace.find().fused / "general" / tiny_base.name / "gguf"
    config = ExportConfig(tiny_base, tiny_base.name, "f16", "", Sampling(), out_folder=folder, verify="none")
    export(config, lambda done, total: None)
    result = call(server, "general", "--base", tiny_base, "--type", "f16")
    assert result.exit_code == 0, result.output
    assert "was never verified" in result.stderr
    result = call(server, "general", "--base", tiny_base, "--type", "f16", "--json")
    assert json.loads(result.stdout)["verification"] is None


def test_checks_that_were_not_run_are_told_with_the_remedy(
    server: OllamaServer, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "consumer_version", lambda: "")
    result = call(server, "general", "--base", tiny_base, "--type", "f16")
    assert result.exit_code == 0, result.output
    assert "notice: not verified: loading, tokens" in result.stderr
    assert "afs-mlx[verify]" in result.stderr
