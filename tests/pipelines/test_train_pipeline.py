"""A run folder is whole or says that it is not: finished, interrupted, failed on a full disk, never half."""

import errno
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm import load
from safetensors import SafetensorError
from safetensors.numpy import load_file

from afs_mlx.core.errors import AfsError, MissingError
from afs_mlx.core.paths import Workspace
from afs_mlx.engine import tensor_files
from afs_mlx.engine.adapters import format as adapter_format
from afs_mlx.engine.bases.location import locate, weights_hash
from afs_mlx.engine.bases.tiny_qwen2 import build_tiny_qwen2
from afs_mlx.engine.training import trainer
from afs_mlx.engine.training.events import Planned, Prepared, Resumed, Sampled, Saved, Stepped, Validated
from afs_mlx.experts.catalog import Catalog
from afs_mlx.pipelines.train import BaseChosen, RunCreated, TrainConfig, TrainEvent, TrainResult, train
from afs_mlx.runs import folder as run_folder
from afs_mlx.runs.folder import Run
from afs_mlx.runs.selection import select
from afs_mlx.schema.example import Example
from afs_mlx.schema.message import Message
from afs_mlx.schema.recipe import Recipe

pytestmark = pytest.mark.slow

QUICK = Recipe(rank=2, alpha=4, layers=1, targets=("q_proj", "v_proj"), epochs=2, learning_rate=1e-3, batch_tokens=200)
# A step for each row, and a checkpoint after every second.
OFTEN = QUICK.model_copy(update={"batch_tokens": 30, "checkpoint_steps": 2, "dropout": 0.2})
DATA = {"inputs": [{"file": "rows.jsonl", "sha256": "f" * 64, "rows": 6}], "seed": 0}


def pair(number: int) -> Example:
    question = Message(role="user", content=f"Clear ${number:02x}.")
    return Example(messages=(question, Message(role="assistant", content=f"stz ${number:02x}")))


def config(recipe: Recipe = QUICK, **changes: Any) -> TrainConfig:
    workspace = Workspace.find()
    made = TrainConfig(
        expert="din",
        version="v2",
        system="You are Din.",
        recipe=recipe,
        base="tiny-qwen2",
        own_base="qwen2.5-coder-3b",
        bases=Catalog.load(workspace).bases,
        train=[pair(number) for number in range(5)],
        valid=[pair(5)],
        data_record=DATA,
        workspace=workspace,
    )
    return replace(made, **changes)


def ignore(event: TrainEvent) -> None:
    """Nobody watches."""


def chosen() -> str | None:
    """The run that answers for din."""
    selection = select(Workspace.find(), "din", "v2", "tiny-qwen2")
    return selection.run.name if selection else None


def the_run() -> Run:
    """The only run there is."""
    (path,) = (Workspace.find().adapters / "din").iterdir()
    return Run.read(path)


def newest() -> Run:
    """The run that was started last."""
    return Run.read(max((Workspace.find().adapters / "din").iterdir(), key=lambda path: path.stat().st_ctime_ns))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_says_how_it_was_made() -> None:
    result = train(config(), ignore)
    record = json.loads((result.path / "run.json").read_text())
    folder = locate(Catalog.load(Workspace.find()).bases["tiny-qwen2"])
    assert folder is not None
    assert result.path.parent == Workspace.find().adapters / "din"
    assert (record["expert"], record["version"], record["status"], record["demo"]) == ("din", "v2", "finished", True)
    assert record["base"] == {"id": "tiny-qwen2", "revision": "", "weights_sha256": weights_hash(folder)}
    assert record["recipe"] == QUICK.model_dump(mode="json"), "every setting, also those left at their default"
    assert record["recipe"]["seed"] == 0
    assert record["system"] == "You are Din."
    assert record["data"] == DATA
    assert record["packages"]["mlx"]
    assert record["machine"]
    assert record["schema_version"] == 1
    assert record["started_at"] <= record["finished_at"]
    assert record["metrics"]["best_valid_loss"] == result.best_valid_loss
    assert record["metrics"]["supervised_tokens_seen"] > 0
    assert "weights" not in record["metrics"]


def test_the_folder_loads_as_it_is() -> None:
    result = train(config(), ignore)
    assert {path.name for path in result.path.iterdir()} == {
        "adapter_config.json",
        "adapters.safetensors",
        "checkpoints",
        "metrics.jsonl",
        "run.json",
    }
    base = locate(Catalog.load(Workspace.find()).bases["tiny-qwen2"])
    model, _ = load(str(base), adapter_path=str(result.path))
    assert model(mx.array([[1, 2]])).shape == (1, 2, 704)
    assert chosen() == result.path.name


def test_what_is_learnt_lies_in_the_folder() -> None:
    """The best weights, not zeros: training once more with the same seed gives the same file."""
    first, second = train(config(), ignore), train(config(), ignore)
    assert first.path != second.path
    arrays = load_file(first.path / "adapters.safetensors")
    assert any(abs(array).max() > 0 for name, array in arrays.items() if name.endswith("lora_b"))
    names = ("adapters.safetensors", "adapter_config.json")
    assert all((first.path / name).read_bytes() == (second.path / name).read_bytes() for name in names)


def test_events_come_in_order_and_metrics_hold_the_same_figures() -> None:
    events: list[TrainEvent] = []
    result = train(config(), events.append)
    kinds = [type(event) for event in events]
    assert kinds[:5] == [BaseChosen, RunCreated, Planned, Prepared, Validated]
    assert kinds[5:7] == [Sampled, Saved], "a first checkpoint before the first step"
    assert events[0] == BaseChosen("tiny-qwen2", True, "")
    assert events[1] == RunCreated(result.path)
    lines = [json.loads(line) for line in (result.path / "metrics.jsonl").read_text().splitlines()]
    steps = [event for event in events if isinstance(event, Stepped)]
    validations = [event for event in events if isinstance(event, Validated)]
    assert [(x["step"], x["train/loss"]) for x in lines if "train/loss" in x] == [(s.step, s.loss) for s in steps]
    assert [(x["step"], x["valid/loss"]) for x in lines if "valid/loss" in x] == [(v.step, v.loss) for v in validations]
    assert result.steps == result.total_steps == len(steps)
    assert result.base_valid_loss == validations[0].loss


def test_rows_stand_under_the_system_text() -> None:
    def tokens(system: str) -> int:
        events: list[TrainEvent] = []
        train(config(system=system), events.append)
        return next(event.train_tokens for event in events if isinstance(event, Planned))

    assert tokens("Speak in assembly. " * 5) > tokens("Speak.") + 5 * 10


def test_an_interrupted_run_is_whole_and_says_so() -> None:
    stop = threading.Event()

    def on_event(event: TrainEvent) -> None:
        if isinstance(event, Stepped):
            stop.set()

    result = train(config(QUICK.model_copy(update={"batch_tokens": 30}), stop=stop), on_event)
    assert result.interrupted
    assert result.steps == 1 < result.total_steps
    run = Run.read(result.path)
    assert (run.status, run.usable) == ("interrupted", True)
    assert run.record["metrics"]["steps"] == 1
    adapter_format.check_adapter_folder(result.path, locate(Catalog.load(Workspace.find()).bases["tiny-qwen2"]))
    assert chosen() == result.path.name


def test_out_names_the_folder_and_a_taken_name_gets_a_number(tmp_path: Path) -> None:
    first = train(config(out=tmp_path / "mine"), ignore)
    second = train(config(out=tmp_path / "mine"), ignore)
    assert [first.path.name, second.path.name] == ["mine", "mine-2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: replace(c, recipe=Recipe(max_seq_tokens=8)), r"training rows: rows are longer than max_seq_tokens"),
        (lambda c: replace(c, recipe=Recipe(rank=512)), "rank 512 is above"),
        (lambda c: replace(c, recipe=Recipe(targets=("wq",))), "targets match no linear layer: wq"),
        (lambda c: replace(c, base="qwen2.5-coder-14b"), "is not on this machine"),
    ],
    ids=["over-long rows", "rank", "targets", "missing base"],
)
def test_what_cannot_begin_leaves_no_folder(change: Callable[[TrainConfig], TrainConfig], message: str) -> None:
    with pytest.raises(AfsError, match=message):
        train(change(config()), ignore)
    assert not Workspace.find().adapters.exists()


def test_a_missing_base_is_exit_3() -> None:
    with pytest.raises(MissingError) as caught:
        train(config(base="qwen2.5-coder-3b"), ignore)
    assert "afs-mlx pull qwen2.5-coder-3b" in caught.value.fix


# Failures after the folder is there


def disk_is_full(*args: Any, **options: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def disk_is_full_in_rust(*args: Any, **options: Any) -> None:
    """What safetensors raises on a full disk."""
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def break_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_files, "save_file", disk_is_full_in_rust)


def break_weights_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_files, "save_file", disk_is_full)


def break_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder.os, "fsync", disk_is_full)


@pytest.mark.parametrize("broken", [break_weights, break_weights_python, break_metrics])
def test_a_full_disk_fails_the_run_and_spares_the_earlier_one(
    broken: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = train(config(), ignore).path
    kept = contents(before)
    created: list[Path] = []
    with monkeypatch.context() as patch:

        def on_event(event: TrainEvent) -> None:
            if isinstance(event, RunCreated):
                created.append(event.path)
                broken(patch)

        with pytest.raises(AfsError, match=r"disk is full|No space left"):
            train(config(), on_event)
    (path,) = created
    assert path != before
    run_status = json.loads((path / "run.json").read_text())["status"]
    assert run_status == ("running" if broken is break_metrics else "failed"), "never finished"
    assert not (path / "adapters.safetensors").exists()
    assert not (path / "adapter_config.json").exists()
    assert [file.name for file in path.rglob("*") if file.name.startswith(".")] == []
    assert contents(before) == kept
    assert chosen() == before.name


def test_a_disk_that_fills_up_while_a_checkpoint_is_saved_fails_the_run_and_it_goes_on_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The checkpoints before are whole, and with some space the run ends as it would have."""
    expected = contents(train(config(OFTEN), ignore).path)["adapters.safetensors"]
    saved: list[str] = []
    with monkeypatch.context() as patch:

        def on_event(event: TrainEvent) -> None:
            if isinstance(event, Saved):
                saved.append(event.name)
                if event.step == 4:
                    patch.setattr("afs_mlx.engine.training.checkpoints.mx.save_safetensors", disk_is_full)

        with pytest.raises(AfsError, match=r"disk is full"):
            train(config(OFTEN), on_event)
    failed = newest()
    assert (failed.status, failed.usable) == ("failed", False)
    assert sorted(path.name for path in (failed.path / "checkpoints").iterdir()) == saved[-2:]
    result = train(config(OFTEN, resume=failed), ignore)
    assert contents(result.path)["adapters.safetensors"] == expected
    assert Run.read(failed.path).status == "finished"
    assert "error" not in Run.read(failed.path).record


def fails_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(trainer, "train", broken)


def test_a_failed_run_records_why_and_is_never_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    fails_with(AfsError("the loss is not finite at step 7", "learning rate 1", "lower it"), monkeypatch)
    with pytest.raises(AfsError, match="not finite at step 7"):
        train(config(), ignore)
    run = the_run()
    assert (run.status, run.usable) == ("failed", False)
    assert "the loss is not finite at step 7" in run.record["error"]
    assert chosen() is None


def test_ctrl_c_twice_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    fails_with(KeyboardInterrupt(), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(config(), ignore)
    assert the_run().status == "failed"
    assert chosen() is None


def test_a_run_that_was_killed_is_never_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """No handler runs; run.json still says running, whatever lies beside it."""
    done = train(config(), ignore).path
    record = json.loads((done / "run.json").read_text())
    (done / "run.json").write_text(json.dumps({**record, "status": "running"}))
    assert chosen() is None


def test_a_record_that_cannot_be_written_does_not_hide_the_first_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:

        def broken(*args: Any, **options: Any) -> None:
            patch.setattr("afs_mlx.core.files.os.fsync", disk_is_full)
            raise AfsError("the loss is not finite", "step 3", "lower it")

        patch.setattr(trainer, "train", broken)
        with pytest.raises(AfsError, match="the loss is not finite") as caught:
            train(config(), ignore)
    assert any("run.json could not be updated" in note for note in caught.value.__notes__)


def test_the_result_is_what_the_folder_says() -> None:
    result: TrainResult = train(config(), ignore)
    metrics = Run.read(result.path).record["metrics"]
    for key in ("steps", "total_steps", "base_valid_loss", "best_step", "interrupted"):
        assert getattr(result, key) == metrics[key]


@pytest.mark.parametrize("interrupted", [False, True])
def test_an_adapter_that_learnt_nothing_does_not_answer(interrupted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    good = train(config(), ignore)
    assert good.improved
    real = trainer.train

    def idle(*arguments: Any, **options: Any) -> trainer.Trained:
        # No validation was below the base's.
        return replace(real(*arguments, **options), best_step=0, interrupted=interrupted)

    monkeypatch.setattr(trainer, "train", idle)
    worse = train(config(), ignore)
    assert (worse.improved, worse.interrupted) == (False, interrupted)
    assert Run.read(worse.path).status == "untrained"
    assert chosen() == good.path.name


# A run that goes on


def stopped(step: int, **changes: Any) -> Run:
    """A run that was asked to stop after `step`."""
    stop = threading.Event()

    def on_event(event: TrainEvent) -> None:
        if isinstance(event, Stepped) and event.step == step:
            stop.set()

    result = train(config(OFTEN, stop=stop, **changes), on_event)
    assert (result.interrupted, result.steps) == (True, step)
    return Run.read(result.path)


@pytest.mark.parametrize("step", range(1, 10))
def test_a_stopped_run_goes_on_in_its_folder_to_the_same_bytes(step: int) -> None:
    expected = train(config(OFTEN), ignore)
    run, events = stopped(step), list[TrainEvent]()
    result = train(config(OFTEN, resume=run), events.append)
    assert events[1] == RunCreated(run.path)
    assert result.path == run.path
    names = ("adapters.safetensors", "adapter_config.json")
    assert [contents(run.path)[name] for name in names] == [contents(expected.path)[name] for name in names]
    (resumed,) = [event for event in events if isinstance(event, Resumed)]
    assert (resumed.step, resumed.total_steps) == (step, 10)


def test_the_record_of_a_resumed_run_says_so() -> None:
    run = stopped(3)
    result = train(config(OFTEN, resume=run), ignore)
    record = Run.read(result.path).record
    assert record["status"] == "finished"
    assert record["started_at"] == run.record["started_at"]
    assert len(record["resumed_at"]) == 1
    assert record["metrics"]["steps"] == 10
    assert record["metrics"]["interrupted"] is False
    assert {name: record[name] for name in ("recipe", "data", "base", "system")} == {
        name: run.record[name] for name in ("recipe", "data", "base", "system")
    }
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line.get("resumed")] == [3]
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, 11))


def test_half_a_line_of_metrics_spoils_no_other() -> None:
    run = stopped(3)
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "train/lo')
    train(config(OFTEN, resume=run), ignore)
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    broken = [line for line in lines if not line.endswith("}")]
    assert broken == ['{"step": 4, "train/lo']
    assert [json.loads(x)["step"] for x in lines if x not in broken and "train/loss" in x] == list(range(1, 11))


CHANGED: dict[str, tuple[dict[str, Any], str]] = {
    "data": ({"train": [pair(number) for number in (0, 1, 2, 3, 9)]}, "another data"),
    "the order of the data": ({"train": [pair(number) for number in (1, 0, 2, 3, 4)]}, "another data"),
    "validation rows": ({"valid": [pair(7)]}, "another data"),
    "system text": ({"system": "You are Nayru."}, "another data"),
    "rate": ({"recipe": OFTEN.model_copy(update={"learning_rate": 2e-3})}, "another recipe"),
    "a switch of speed": (
        {"recipe": OFTEN.model_copy(update={"speed": OFTEN.speed.model_copy(update={"lean": False})})},
        "another recipe",
    ),
}


@pytest.mark.parametrize("change", CHANGED)
def test_another_training_is_not_resumed_and_spares_the_checkpoints(change: str) -> None:
    run = stopped(3)
    before = contents(run.path / "checkpoints")
    changes, message = CHANGED[change]
    with pytest.raises(AfsError, match=message) as caught:
        train(replace(config(OFTEN, resume=run), **changes), ignore)
    assert "resume with what the run was started with" in caught.value.fix
    assert contents(run.path / "checkpoints") == before
    expected = contents(train(config(OFTEN), ignore).path)["adapters.safetensors"]
    train(config(OFTEN, resume=run), ignore)
    assert contents(run.path)["adapters.safetensors"] == expected, "and it can still go on"


def test_another_base_is_not_resumed(tmp_path: Path) -> None:
    run = stopped(3)
    build_tiny_qwen2(tmp_path / "other", seed=1)  # the same shapes
    with pytest.raises(AfsError, match="another base"):
        train(config(OFTEN, resume=run, base=str(tmp_path / "other")), ignore)


@pytest.mark.parametrize("change", ["keep_checkpoints", "samples", "sample_tokens"])
def test_what_does_not_reach_the_weights_may_be_another(change: str) -> None:
    expected = contents(train(config(OFTEN), ignore).path)["adapters.safetensors"]
    run = stopped(3)
    recipe = OFTEN.model_copy(update={change: 3})
    train(config(recipe, resume=run), ignore)
    assert contents(run.path)["adapters.safetensors"] == expected


def test_a_resume_that_is_refused_leaves_the_interrupted_run_as_it_was() -> None:
    run = stopped(7)
    before = contents(run.path)
    assert chosen() == run.name
    with pytest.raises(AfsError, match="another data"):
        train(config(OFTEN, resume=run, valid=[pair(7)]), ignore)
    assert contents(run.path) == before
    assert chosen() == run.name


def test_only_the_newest_checkpoints_stay() -> None:
    path = train(config(OFTEN), ignore).path
    assert sorted(p.name for p in (path / "checkpoints").iterdir()) == ["step-00000008", "step-00000010"]
    one = train(config(OFTEN.model_copy(update={"keep_checkpoints": 1})), ignore).path
    assert [p.name for p in (one / "checkpoints").iterdir()] == ["step-00000010"]


def test_sample_questions_belong_to_their_answers_also_when_rows_were_dropped() -> None:
    """The first and the third validation row fall to the length policy."""
    long = Message(role="user", content="Clear them all. " * 40)
    valid = [Example(messages=(long, pair(n).messages[1])) if n in (5, 7) else pair(n) for n in (5, 6, 7, 8)]
    recipe = QUICK.model_copy(update={"over_long": "drop", "max_seq_tokens": 64, "samples": 2, "sample_tokens": 4})
    events: list[TrainEvent] = []
    train(config(recipe, valid=valid), events.append)
    asked = [(event.question, event.expected) for event in events if isinstance(event, Sampled)][:2]
    assert asked == [("Clear $06.", "stz $06"), ("Clear $08.", "stz $08")]
