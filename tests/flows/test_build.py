"""The whole chain on the tiny base: every artifact, the gate, --force, an interruption, leaks."""

import errno
import json
import shutil
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from afs_mlx.core.errors import AfsError, ExitCode, RefusedError
from afs_mlx.core.files import sha256_of
from afs_mlx.core.paths import Workspace
from afs_mlx.engine.adapters.format import WEIGHTS
from afs_mlx.engine.inference.generation import Generator
from afs_mlx.engine.training import trainer
from afs_mlx.engine.training.events import Planned, Stepped
from afs_mlx.experts.catalog import Catalog, ChosenExpert
from afs_mlx.flows.build import STAGES, BuildConfig, BuildEvent, BuildResult, StageStarted, TensorWritten, build
from afs_mlx.pipelines.evaluate import CaseDone
from afs_mlx.pipelines.train import RunCreated
from afs_mlx.runs.folder import Run
from afs_mlx.runs.selection import Selection, select
from afs_mlx.schema.expert import Expert, ExpertVersion
from afs_mlx.schema.optimisation import OptimisationPair
from afs_mlx.schema.recipe import Recipe
from afs_mlx.schema.sampling import Sampling
from afs_mlx.snes.asar import Assembly
from afs_mlx.snes.equivalence import judging

pytestmark = pytest.mark.slow

# Every routine here loads and compares what nobody reads afterwards, so one short answer is right for all of them: it
# can be learnt from noise in seconds.
ANSWER = "```asm\n  nop\n```\nSo."
OPCODES = ("lda", "ldx", "ldy", "adc", "sbc", "ora", "eor", "and", "cmp", "bit", "cpx", "lda.w")
LEARNS = Recipe(rank=16, alpha=32, learning_rate=3e-3, epochs=16, batch_tokens=300, max_seq_tokens=512)
IDLE = LEARNS.model_copy(update={"learning_rate": 1e-9, "epochs": 1})
SUITE = """
title = "three routines"
scorer = "optimisation"
cases = "cases.jsonl"
max_tokens = 24
measures = "whether something cheaper comes back"
"""


def pair(number: int, opcode: str) -> OptimisationPair:
    return OptimisationPair.model_validate(
        {
            "id": f"p{number}",
            "family": "test",
            "goal": "bytes",
            "entry": {"m": 8, "x": 8},
            "live": [],
            "code": f"  {opcode} $10\n  {opcode} $2{number % 10}\n  tax",
            "better": "  nop",
            "reason": "none",
            "not_when": "never",
        }
    )


def chat_row(asked: OptimisationPair) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": asked.question()}, {"role": "assistant", "content": ANSWER}]}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config_in(folder: Path) -> BuildConfig:
    """Twelve rows and three cases below `folder`; the workspace is the one that holds now."""
    data = write(folder / "small.jsonl", [chat_row(pair(n, opcode)) for n, opcode in enumerate(OPCODES)])
    write(folder / "cases.jsonl", [pair(n, "cpy").model_dump(mode="json") for n in range(50, 53)])
    suite = folder / "three.toml"
    suite.write_text(SUITE)
    version = ExpertVersion(kind="lora", base="tiny-qwen2")
    expert = Expert(title="a test", sampling=Sampling(temperature=0.3), versions={"v1": version})
    workspace = Workspace.find()
    return BuildConfig(
        expert=ChosenExpert("din", "v1", expert, version, "You are Din."),
        recipe=LEARNS,
        data=data,
        suite=suite,
        base="tiny-qwen2",
        threshold=0.9,
        file_type="f16",
        catalog=Catalog.load(workspace),
        workspace=workspace,
    )


@pytest.fixture
def config(tmp_path: Path) -> BuildConfig:
    return config_in(tmp_path)


@dataclass(frozen=True)
class Built:
    """A build that went through."""

    config: BuildConfig
    events: list[BuildEvent]
    result: BuildResult


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    home = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFS_MLX_HOME", str(home / "workspace"))
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        config, events = config_in(home), list[BuildEvent]()
        return Built(config, events, build(config, events.append))


def ignore(event: BuildEvent) -> None:
    """Nobody watches."""


def stages(events: list[BuildEvent]) -> list[str]:
    return [event.name for event in events if isinstance(event, StageStarted)]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} if folder.exists() else set()


def selected(workspace: Workspace) -> Selection:
    selection = select(workspace, "din", "v1", "tiny-qwen2")
    assert selection is not None
    return selection


def the_run(workspace: Workspace) -> Run:
    (path,) = (workspace.adapters / "din").iterdir()
    return Run.read(path)


def test_the_whole_chain(built: Built) -> None:
    events, result = built.events, built.result
    assert stages(events) == list(STAGES)
    assert [event.number for event in events if isinstance(event, StageStarted)] == [1, 2, 3, 4, 5, 6]
    assert sum(isinstance(event, CaseDone) for event in events) == 6, "three cases before, three after"
    last = [event for event in events if isinstance(event, TensorWritten)][-1]
    assert last.done == last.total > 10
    assert len(result.data.train) + len(result.data.valid) == 12
    assert len(result.data.valid) >= 1
    (plan,) = [event for event in events if isinstance(event, Planned)]
    assert (plan.train_rows, plan.valid_rows) == (len(result.data.train), len(result.data.valid))

    assert result.before is not None
    assert result.after is not None
    assert result.before.score is not None
    assert result.after.score is not None
    assert (result.before.score.value, result.after.score.value) == (0, 1)
    assert result.after.verdict.passed
    assert result.after.verdict.before == 0
    assert "demo" in result.after.verdict.reason
    assert selected(built.config.workspace).reason == "best that passed its gate, 1.00"


def test_every_artifact_is_whole_and_names_what_it_was_made_from(built: Built) -> None:
    config, result = built.config, built.result
    workspace = config.workspace
    run = the_run(workspace)
    assert run.path == result.trained.path
    assert (run.status, run.record["demo"]) == ("finished", True)
    assert run.record["recipe"] == config.recipe.model_dump(mode="json")
    assert run.record["data"]["inputs"][0]["sha256"] == sha256_of(config.data)
    assert run.record["data"]["suite"] == "three"
    assert files(workspace.splits / "small") == {"train.jsonl", "valid.jsonl", "manifest.json"}

    results = workspace.results / "din"
    assert files(results) == {"base-tiny-qwen2-v1/three.json", f"{run.name}/three.json"}
    assert json.loads((results / run.name / "three.json").read_text())["adapter"] == run.name

    assert result.fused is not None
    assert result.exported is not None
    assert result.fused.path == workspace.fused / "din" / run.name
    shipped = json.loads(result.exported.gguf.with_name("manifest.json").read_text())
    assert shipped["gguf"]["sha256"] == sha256_of(result.exported.gguf)
    assert shipped["parent"]["parent"]["sha256"] == sha256_of(run.path / WEIGHTS)
    assert result.exported.gguf.name == "din-v1-f16.gguf"
    modelfile = result.exported.modelfile.read_text()
    assert "You are Din." in modelfile
    assert "temperature 0.3" in modelfile


def test_the_gate_holds_back_what_got_no_better_and_keeps_the_adapter(config: BuildConfig) -> None:
    events: list[BuildEvent] = []
    with pytest.raises(RefusedError, match=r"the gate holds .* back: demo: 0\.00 is not above") as caught:
        build(replace(config, recipe=IDLE), events.append)
    assert caught.value.code == ExitCode.REFUSED == 4
    assert "--force" in caught.value.fix
    assert Path(caught.value.where).is_file(), "the result that says why"
    assert stages(events) == ["data", "base score", "train", "score"]
    run = the_run(config.workspace)
    assert run.usable
    assert files(config.workspace.fused) == set()
    assert selected(config.workspace) == Selection(run, "latest; none has passed its gate")


def test_force_ships_what_the_gate_holds_back(config: BuildConfig) -> None:
    result = build(replace(config, recipe=IDLE, force=True), ignore)
    assert result.after is not None
    assert not result.after.verdict.passed
    assert result.exported is not None
    assert result.exported.gguf.is_file()


def test_without_a_suite_nothing_is_scored_and_everything_made(config: BuildConfig) -> None:
    events: list[BuildEvent] = []
    result = build(replace(config, recipe=IDLE, suite=None), events.append)
    assert result.before is None
    assert result.after is None
    assert result.exported is not None
    assert not any(isinstance(event, CaseDone) for event in events)
    assert not config.workspace.results.exists()


def test_without_asar_the_chain_goes_on_unverified(config: BuildConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(self: Generator, conversations: Sequence[Any], *rest: Any) -> Iterator[tuple[int, str]]:
        yield from ((index, ANSWER) for index in range(len(conversations)))

    monkeypatch.setattr(Generator, "answers", answers)
    monkeypatch.setattr(judging, "assemble", lambda code: Assembly("unavailable", 0x8000))
    result = build(replace(config, recipe=IDLE), ignore)
    assert result.after is not None
    assert result.after.score is None
    assert result.exported is not None
    assert "none has passed" in selected(config.workspace).reason


def test_an_interruption_keeps_the_adapter_and_ends_early(config: BuildConfig) -> None:
    stop = threading.Event()
    events: list[BuildEvent] = []

    def on_event(event: BuildEvent) -> None:
        events.append(event)
        if isinstance(event, Stepped) and event.step == 2:
            stop.set()

    result = build(replace(config, stop=stop), on_event)
    assert result.trained.interrupted
    assert result.trained.steps == 2 < result.trained.total_steps
    assert (result.after, result.fused, result.exported) == (None, None, None)
    assert stages(events) == ["data", "base score", "train"]
    run = the_run(config.workspace)
    assert (run.status, run.usable) == ("interrupted", True)
    assert files(config.workspace.fused) == set()


def test_suite_rows_in_the_data_are_refused_before_any_work(config: BuildConfig) -> None:
    leaked = [*[chat_row(pair(n, opcode)) for n, opcode in enumerate(OPCODES)], chat_row(pair(51, "cpy"))]
    write(config.data, leaked)
    events: list[BuildEvent] = []
    with pytest.raises(AfsError, match="evaluation cases stand in the training data") as caught:
        build(config, events.append)
    assert "row 13 is case p51 of suite three" in str(caught.value)
    assert stages(events) == ["data"]
    assert files(config.workspace.root) == set()


def test_a_folder_of_rows_is_used_as_it_is(config: BuildConfig, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    rows = [chat_row(pair(n, opcode)) for n, opcode in enumerate(OPCODES)]
    write(folder / "train.jsonl", rows[:10])
    write(folder / "valid.jsonl", rows[10:])
    result = build(replace(config, recipe=IDLE, data=folder, suite=None), ignore)
    assert (len(result.data.train), len(result.data.valid)) == (10, 2)
    assert {entry["file"] for entry in the_run(config.workspace).record["data"]["inputs"]} == {
        "train.jsonl",
        "valid.jsonl",
    }


# Failures in the middle


def break_off(*args: Any, **options: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_stage_that_fails_keeps_what_the_stages_before_it_made(
    config: BuildConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("afs_mlx.engine.fusing.writing.Shards.add", break_off)
        with pytest.raises(AfsError, match="the disk is full"):
            build(replace(config, recipe=IDLE, force=True), ignore)
    run = the_run(config.workspace)
    assert run.status == "finished"
    assert selected(config.workspace).run == run
    assert files(config.workspace.fused) == set()
    assert len(files(config.workspace.results)) == 2


@pytest.mark.parametrize("where", ["train", "score"])
def test_a_second_build_that_fails_leaves_the_first_one_whole(config: BuildConfig, built: Built, where: str) -> None:
    root = config.workspace.root
    shutil.copytree(built.config.workspace.root, root)
    kept = {path: sha256_of(path) for path in root.rglob("*") if path.is_file()}
    created: list[Path] = []

    def on_event(event: BuildEvent) -> None:
        if isinstance(event, RunCreated):
            created.append(event.path)
        if isinstance(event, Stepped if where == "train" else CaseDone) and created:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(replace(config, recipe=IDLE), on_event)
    # Written anew, whole, with another time in it.
    again = [root / "evals" / "results" / "din" / "base-tiny-qwen2-v1", root / "data" / "splits" / "small"]
    for path, digest in kept.items():
        assert path.parent in again or sha256_of(path) == digest, path
    assert Run.read(created[0]).status == ("failed" if where == "train" else "finished")
    assert selected(config.workspace).run.name == built.result.trained.path.name, "the one that passed its gate answers"


def test_an_adapter_that_learnt_nothing_is_not_shipped(config: BuildConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    real, events = trainer.train, list[BuildEvent]()
    # No validation was below the base's.
    monkeypatch.setattr(trainer, "train", lambda *given, **options: replace(real(*given, **options), best_step=0))
    with pytest.raises(AfsError, match="no step was better than the base") as caught:
        build(replace(config, recipe=IDLE, force=True), events.append)
    assert "learning_rate" in caught.value.fix
    assert stages(events) == ["data", "base score", "train"]
    assert the_run(config.workspace).status == "untrained"
    assert not config.workspace.fused.exists()
