"""Verdict → fuse → export → register, on tiny-qwen2 and a server that speaks Ollama's protocol."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afs_mlx.answering import for_target
from afs_mlx.core.errors import AfsError, ExitCode, MissingError, RefusedError
from afs_mlx.core.files import sha256_of, write_json
from afs_mlx.core.manifest import input_file
from afs_mlx.core.paths import Workspace
from afs_mlx.engine.adapters.format import AdapterConfig, LoraParameters, write_adapter
from afs_mlx.engine.adapters.linears import base_linears
from afs_mlx.engine.bases.location import choose_base, own_folder
from afs_mlx.evaluation.gate import Verdict
from afs_mlx.experts.catalog import Catalog
from afs_mlx.flows.deploy import STAGES, DeployEvent, DeployResult, Judged, deploy, record_path, verdict
from afs_mlx.flows.shipping import ShipConfig, StageStarted, TensorWritten
from afs_mlx.flows.shipping_plan import RECORD, plan
from afs_mlx.pipelines.evaluate import config_for, evaluate
from afs_mlx.pipelines.register import remove
from afs_mlx.runs.folder import WEIGHTS, Run
from afs_mlx.schema.score import Score

sys.path.insert(0, str(Path(__file__).parents[1] / "clients"))
from ollama_server import OllamaServer, running

EXPERTS = """
[nayla]
title = "a test"
prompt = "nayla"
default = "v1"

[nayla.versions.v1]
kind = "lora"
base = "tiny-qwen2"
suite = "three"
threshold = 0.5

[nayla.versions.v2-fewshot]
kind = "fewshot"
base = "tiny-qwen2"
suite = "three"
threshold = 0.5

[[nayla.versions.v2-fewshot.shots]]
user = "lda #$00"
assistant = "stz"

[nayla.versions.v3]
kind = "prompt"
base = "tiny-qwen2"
suite = "not-written"
"""
SUITE = 'title = "t"\nscorer = "optimisation"\ncases = "three.jsonl"\nmeasures = "nothing"\nmax_tokens = 8\n'


@pytest.fixture
def server() -> Iterator[OllamaServer]:
    with running(OllamaServer()) as found:
        yield found


@pytest.fixture
def workspace(tiny_base: Path) -> Workspace:
    """An expert with a trained, a few-shot and a prompt version, and a suite; the base is there already."""
    shutil.copytree(tiny_base, own_folder("tiny-qwen2"))
    workspace = Workspace.find()
    (workspace.root / "evals" / "suites").mkdir(parents=True)
    (workspace.root / "prompts").mkdir()
    (workspace.root / "prompts" / "nayla.md").write_text("You are Nayla.")
    workspace.experts_file.write_text(EXPERTS)
    cases = Path(__file__).parents[2] / "evals" / "suites" / "optimisation.jsonl"
    rows = cases.read_text(encoding="utf-8").splitlines()[:3]
    (workspace.root / "evals" / "suites" / "three.jsonl").write_text("".join(f"{row}\n" for row in rows))
    (workspace.root / "evals" / "suites" / "three.toml").write_text(SUITE)
    return workspace


@pytest.fixture
def config(workspace: Workspace, server: OllamaServer) -> ShipConfig:
    return ShipConfig("nayla", Catalog.load(workspace), workspace, host=server.address, run="v1-b", verify="none")


def make_run(config: ShipConfig, name: str = "v1-b", seed: int = 1, version: str = "v1") -> Run:
    """A finished run of noise."""
    base = choose_base("tiny-qwen2", "tiny-qwen2", config.catalog.bases)
    folder = config.workspace.adapters / "nayla" / name
    rng = np.random.default_rng(seed)
    tensors = {}
    for path, (rows, columns) in base_linears(base.folder).shapes.items():
        if path.endswith("q_proj"):
            tensors[f"{path}.lora_a"] = 0.1 * rng.standard_normal((columns, 4))
            tensors[f"{path}.lora_b"] = 0.1 * rng.standard_normal((4, rows))
    folder.mkdir(parents=True, exist_ok=True)
    parameters = LoraParameters(rank=4, scale=1.0, dropout=0.0, keys=("self_attn.q_proj",))
    write_adapter(folder, tensors, AdapterConfig(num_layers=-1, lora_parameters=parameters))
    record = {
        "expert": "nayla",
        "version": version,
        "status": "finished",
        "base": {"id": "tiny-qwen2"},
        "system": "You are Nayla.",
        "started_at": "2026-11-20T00:00:00Z",
    }
    write_json(folder / "run.json", record)
    return Run.read(folder)


def evaluated(
    config: ShipConfig, passed: int = 2, made_at: str = "2099-01-01T00:00:00Z", target: str = "", **changes: Any
) -> Path:
    """A result file as `afs-mlx eval` leaves it, of three cases."""
    run = config.run if "fewshot" not in (target or config.target) else ""
    found = for_target(target or config.target, "auto", run, config.catalog, config.workspace)
    asked = config_for(found, config.workspace.find_file("evals/suites/three.toml"), config.workspace)
    score = Score.of(passed, 3)
    verdict = Verdict(passed=score.value >= 0.5, reason=f"{score.value:.2f} of 0.50", threshold=0.5, before=None)
    suite = config.workspace.root / "evals" / "suites"
    record = {
        "made_at": made_at,
        "suite": "three",
        "label": asked.label,
        "inputs": [input_file(suite / "three.toml"), input_file(suite / "three.jsonl")],
        "base": asked.base,
        "system": asked.system,
        "shots": [shot.model_dump() for shot in asked.shots],
        "demo": asked.demo,
        "adapter": asked.adapter.name if asked.adapter else "",
        "adapter_sha256": sha256_of(asked.adapter / WEIGHTS) if asked.adapter else "",
        "score": score.model_dump(),
        "gate": verdict.model_dump(),
    }
    write_json(asked.out, record | changes)
    return asked.out


def in_manifest(result: DeployResult) -> dict[str, Any]:
    """What the GGUF's manifest says of the deployment."""
    exports = json.loads(result.shipped.manifest.read_text())["exports"]
    deployed: dict[str, Any] = exports[result.shipped.plan.gguf.name]["deployed"]
    return deployed


def ignore(event: DeployEvent) -> None:
    """Nobody watches."""


def refusal(config: ShipConfig, server: OllamaServer) -> str:
    """The reason for which nothing is done: nothing fused, written or said to the server."""
    fused = {path for path in config.workspace.fused.rglob("*") if path.is_file()}
    with pytest.raises(RefusedError) as caught:
        deploy(config, ignore)
    assert caught.value.code == ExitCode.REFUSED
    assert {path for path in config.workspace.fused.rglob("*") if path.is_file()} == fused
    assert server.calls == []
    return str(caught.value)


def test_never_measured(config: ShipConfig, server: OllamaServer) -> None:
    make_run(config)
    text = refusal(config, server)
    assert "nayla-v1-demo is not deployed: nayla@v1 (v1-b) was never evaluated on three" in text
    assert "fix: afs-mlx eval nayla --run v1-b" in text
    assert "--force" in text


def test_below_the_gate_and_below_the_run_before_it(config: ShipConfig, server: OllamaServer) -> None:
    make_run(config, "v1-a")
    make_run(config, "v1-b", seed=2)
    evaluated(replace(config, run="v1-a"), 3, "2098-01-01T00:00:00Z")
    evaluated(config, 1)
    text = refusal(config, server)
    assert "0.33 is below the 1.00 of v1-a (2098-01-01T00:00:00Z)" in text
    assert "the gate was not passed: 0.33 of 0.50" in text
    assert "train again" in text


def test_another_version_s_result_is_nothing_to_fall_below(config: ShipConfig) -> None:
    make_run(config, "v1-other", version="v2-fewshot")
    make_run(config, "v1-b", seed=2)
    evaluated(replace(config, run="v1-other"), 3, "2098-01-01T00:00:00Z")
    evaluated(config, 2)
    assert deploy(replace(config, dry_run=True), ignore).judgement.passed


@pytest.mark.parametrize("what", ["suite", "prompt", "adapter", "other base"])
def test_a_result_of_something_else_does_not_count(config: ShipConfig, server: OllamaServer, what: str) -> None:
    make_run(config)
    path = evaluated(config)
    reason = {
        "suite": "the suite three was changed since",
        "prompt": "the prompt was changed since",
        "adapter": "the adapter was changed since",
        "other base": "it is of smollm2-135m, not of tiny-qwen2",
    }[what]
    if what == "suite":
        (config.workspace.root / "evals" / "suites" / "three.toml").write_text(SUITE + "# another\n")
    elif what == "prompt":
        (config.workspace.root / "prompts" / "nayla.md").write_text("You are another.")
        config = replace(config, catalog=Catalog.load(config.workspace))
    elif what == "adapter":
        make_run(config, seed=9)
    else:
        record = json.loads(path.read_text())
        write_json(path, record | {"base": record["base"] | {"id": "smollm2-135m"}})
    text = refusal(config, server)
    assert reason in text
    assert "afs-mlx eval nayla" in text


def test_a_suite_that_is_not_written(config: ShipConfig, server: OllamaServer) -> None:
    text = refusal(replace(config, target="nayla@v3", run=""), server)
    assert "its suite 'not-written' is not written yet" in text
    assert "it names no suite" in refusal(replace(config, target="general", base="tiny-qwen2", run=""), server)


def test_a_run_that_is_not_there(config: ShipConfig) -> None:
    with pytest.raises(MissingError, match="has no run 'v1-b'"):
        deploy(config, ignore)


def test_a_dry_run_shows_the_verdict_and_does_nothing(config: ShipConfig, server: OllamaServer) -> None:
    make_run(config)
    events: list[DeployEvent] = []
    result = deploy(replace(config, dry_run=True), events.append)
    assert not result.judgement.passed
    assert result.record is None
    assert result.shipped.plan.fuse
    assert result.shipped.registered.calls[0].path == "/api/version"
    assert isinstance(events[1], Judged)
    assert server.calls == []
    assert not config.workspace.fused.exists()


def test_from_adapter_to_model(config: ShipConfig, server: OllamaServer) -> None:
    run = make_run(config)
    evaluated(config)
    events: list[DeployEvent] = []
    result = deploy(config, events.append)
    stages = [event.name for event in events if isinstance(event, StageStarted)]
    assert stages == list(STAGES)
    assert any(isinstance(event, TensorWritten) for event in events)
    assert "nayla-v1-demo:latest" in server.models
    assert result.overrode == ""
    assert result.shipped.plan.model_folder == config.workspace.fused / "nayla" / run.name
    record = json.loads(record_path(config.workspace, "nayla-v1-demo").read_text())["deployments"]
    assert len(record) == 1
    (entry,) = record
    assert (entry["expert"], entry["version"], entry["run"], entry["forced"]) == ("nayla", "v1", "v1-b", False)
    assert entry["score"]["value"] == pytest.approx(2 / 3)
    assert entry["gguf"]["sha256"] == sha256_of(result.shipped.plan.gguf)
    assert in_manifest(result)["forced"] is False

    again = deploy(config, events.append)
    assert again.shipped.reused, "the GGUF on disk is the model as it is"
    assert again.shipped.fused is None
    assert len(json.loads(again.record.read_text())["deployments"]) == 2 if again.record else False


def test_what_is_deployed_is_not_fallen_below(config: ShipConfig, server: OllamaServer) -> None:
    make_run(config, "v1-a")
    make_run(config, "v1-b", seed=2)
    evaluated(replace(config, run="v1-a"), 3, "2099-01-02T00:00:00Z")
    evaluated(config, 2, "2099-01-01T00:00:00Z")
    deploy(replace(config, run="v1-a"), ignore)
    server.calls.clear()
    assert "0.67 is below the 1.00 of the deployed v1-a" in refusal(config, server)


def test_what_was_removed_is_no_bar(config: ShipConfig, server: OllamaServer) -> None:
    make_run(config, "v1-a", seed=2)
    evaluated(replace(config, run="v1-a"), passed=3, made_at="2099-01-01T00:00:00Z")
    deploy(replace(config, run="v1-a"), ignore)
    evaluated(replace(config, run="v1-a"), passed=2, made_at="2099-01-01T00:00:01Z")
    make_run(config)
    evaluated(config, made_at="2099-01-02T00:00:00Z")
    planned = plan(replace(config, fuse=True))
    assert "of the deployed v1-a" in "; ".join(verdict(planned, config.workspace).reasons)
    remove("nayla-v1-demo", config.workspace.fused / RECORD, host=server.address)
    assert verdict(planned, config.workspace).passed


def test_force_is_recorded(config: ShipConfig, server: OllamaServer) -> None:
    make_run(config)
    evaluated(config, 1)
    result = deploy(replace(config, force=True), ignore)
    assert "nayla-v1-demo:latest" in server.models
    assert result.overrode == "the gate was not passed: 0.33 of 0.50"
    (entry,) = json.loads(record_path(config.workspace, "nayla-v1-demo").read_text())["deployments"]
    assert (entry["forced"], entry["overrode"]) == (True, result.overrode)
    assert in_manifest(result)["overrode"] == result.overrode
    (model,) = json.loads((config.workspace.fused / "deployed.json").read_text())["models"]
    assert model["overrode"] == result.overrode


def test_force_that_overrides_nothing_says_nothing(config: ShipConfig) -> None:
    make_run(config)
    evaluated(config)
    assert deploy(replace(config, force=True), ignore).overrode == ""


def test_a_few_shot_version_ships_the_base(config: ShipConfig, server: OllamaServer) -> None:
    config = replace(config, target="nayla@v2-fewshot", run="")
    evaluated(config, 2)
    result = deploy(config, ignore)
    assert result.shipped.plan.gguf.parent == config.workspace.fused / "general" / "tiny-qwen2" / "gguf"
    modelfile = config.workspace.fused / "nayla" / "v2-fewshot-tiny-qwen2" / "Modelfile"
    assert (
        modelfile.read_text().splitlines()[0]
        == f'FROM "./../../general/tiny-qwen2/gguf/{result.shipped.plan.gguf.name}"'
    )
    assert (modelfile.parent / Path("../../general/tiny-qwen2/gguf") / result.shipped.plan.gguf.name).is_file()
    assert 'MESSAGE user "lda #$00"' in modelfile.read_text()
    model = server.models["nayla-v2-fewshot-demo:latest"]
    assert [message["content"] for message in model["messages"]] == ["lda #$00", "stz"]

    general = deploy(replace(config, target="general", base="tiny-qwen2", force=True), ignore)
    assert general.shipped.reused, "one file for every expert of this base"


def test_a_server_that_fails_leaves_the_files_and_no_record(config: ShipConfig, server: OllamaServer) -> None:
    make_run(config)
    evaluated(config)
    server.faults.end_after = 1
    with pytest.raises(AfsError, match="broke off"):
        deploy(config, ignore)
    assert not record_path(config.workspace, "nayla-v1-demo").exists()
    server.faults.end_after = None
    result = deploy(config, ignore)
    assert result.shipped.reused


@pytest.mark.parametrize("reason", ["no server", "a stranger's name"])
def test_what_cannot_be_registered_is_said_before_fusing(config: ShipConfig, server: OllamaServer, reason: str) -> None:
    make_run(config)
    evaluated(config)
    server.add("nayla-v1-demo")
    host = "http://127.0.0.1:9" if reason == "no server" else config.host
    stages: list[str] = []
    with pytest.raises(MissingError if reason == "no server" else RefusedError):
        deploy(
            replace(config, host=host),
            lambda event: stages.append(event.name) if isinstance(event, StageStarted) else None,
        )
    assert stages == ["verdict"]
    assert not config.workspace.fused.exists()


@pytest.mark.parametrize("stage", ["fuse", "export", "register"])
def test_an_interruption_leaves_only_whole_things(config: ShipConfig, server: OllamaServer, stage: str) -> None:
    make_run(config)
    evaluated(config)

    def stop(event: DeployEvent) -> None:
        if event == StageStarted(stage):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deploy(config, stop)
    assert not record_path(config.workspace, "nayla-v1-demo").exists()
    assert server.models == {}
    deploy(config, ignore)
    assert "nayla-v1-demo:latest" in server.models


def test_a_damaged_record_of_deployments_is_named(config: ShipConfig, server: OllamaServer) -> None:
    make_run(config)
    path = record_path(config.workspace, "nayla-v1-demo")
    evaluated(config)
    deploy(config, ignore)
    record = json.loads(path.read_text())
    record["deployments"][-1]["score"] = {"value": 7}
    write_json(path, record)
    with pytest.raises(AfsError, match="record of deployments is damaged") as caught:
        deploy(config, ignore)
    assert os.fspath(path) in str(caught.value)


def test_what_eval_writes_is_what_is_read(config: ShipConfig, server: OllamaServer) -> None:
    """The score is 0, on the right cases, of the right adapter."""
    make_run(config)
    found = for_target(config.target, "auto", config.run, config.catalog, config.workspace)
    asked = config_for(found, config.workspace.find_file("evals/suites/three.toml"), config.workspace)
    evaluate(asked, lambda event: None)
    text = refusal(config, server)
    assert "does not count" not in text
    assert "the gate was not passed: demo: " in text
    (config.workspace.root / "evals" / "suites" / "three.toml").write_text(SUITE + "# another\n")
    assert "the suite three was changed since" in refusal(config, server)


def test_a_prompt_that_no_modelfile_can_hold_reaches_the_server_as_it_is(
    config: ShipConfig, server: OllamaServer
) -> None:
    text = 'Say """ and\x07 "quotes"\nover two lines.'
    (config.workspace.root / "prompts" / "nayla.md").write_text(text)
    config = replace(config, catalog=Catalog.load(config.workspace))
    make_run(config)
    evaluated(config)
    result = deploy(config, ignore)
    assert server.models["nayla-v1-demo:latest"]["system"] == text
    assert result.shipped.plan.modelfile.read_text().startswith("# This is no Modelfile")
