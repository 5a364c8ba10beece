"""A training that was stopped, wherever and however often, ends with the bits of one that was not."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import load

from afs_mlx.core.errors import AfsError
from afs_mlx.engine.training import lora, trainer
from afs_mlx.engine.training.checkpoints import Checkpoints
from afs_mlx.engine.training.compute.losses import Losses
from afs_mlx.engine.training.events import (
    Planned,
    Resumed,
    RolledBack,
    Saved,
    Stepped,
    StoppedEarly,
    TrainingEvent,
    Validated,
    Warned,
)
from afs_mlx.engine.training.rows import Row, TokenisedSet
from afs_mlx.engine.training.trainer import Surroundings, Trained
from afs_mlx.schema.recipe import Recipe

pytestmark = pytest.mark.slow

IDENTITY = {"base": "b", "recipe": "r", "data": "d"}
STEPS = 12
QUICK: dict[str, Any] = {
    "rank": 2,
    "alpha": 4,
    "layers": 2,
    "targets": ("q_proj", "down_proj"),
    "epochs": 2,
    "batch_tokens": 40,
    "learning_rate": 3e-3,
    "validations_per_epoch": 2,
    "checkpoint_steps": 4,
    "samples": 0,
}


ANSWER = [17, 301, 44, 9, 523]


def rows(count: int, seed: int) -> TokenisedSet:
    """One answer to every question: it can be learnt in a few steps."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        question = rng.integers(1, 600, rng.integers(5, 15)).tolist()
        made.append(Row(np.array(question + ANSWER, dtype=np.int32), [0.0] * len(question) + [1.0] * len(ANSWER)))
    return TokenisedSet(made, dropped=0)


TRAIN, VALID = rows(12, 1), rows(3, 2)


@pytest.fixture(autouse=True)
def _no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power is cut here, and hundreds of syncs take longer than the trainings."""
    monkeypatch.setattr("afs_mlx.core.files.os.fsync", lambda descriptor: None)


class Killed(BaseException):
    """Nothing of ours catches it: as if the process were gone."""


class Training:
    """Trainings of one run, each a new model as a new process has; `folder` keeps what a process leaves."""

    def __init__(self, base: Path, folder: Path, valid: TokenisedSet = VALID, **settings: Any) -> None:
        self.base, self.folder, self.sets = base, folder, (TRAIN, valid)
        self.recipe = Recipe.model_validate({**QUICK, **settings})
        self.events: list[TrainingEvent] = []

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.folder, IDENTITY, self.recipe.keep_checkpoints)

    def run(
        self,
        *,
        resume: bool = False,
        stop: Callable[[TrainingEvent], bool] = lambda event: False,
        kill: Callable[[TrainingEvent], bool] = lambda event: False,
        around: Surroundings | None = None,
    ) -> Trained:
        """Until the end, or until an event asks to stop or kills it."""
        model, _ = load(str(self.base))
        lora.attach(model, self.recipe)
        wish: list[bool] = []
        # Another process has drawn other numbers from the global generators.
        mx.random.seed(np.random.default_rng().integers(2**31))
        np.random.seed(None)

        def report(event: TrainingEvent) -> None:
            self.events.append(event)
            if stop(event):
                wish.append(True)
            if kill(event):
                raise Killed

        around = around or Surroundings()
        around = replace(around, checkpoints=self.checkpoints)
        return trainer.train(model, self.recipe, *self.sets, report, lambda: bool(wish), around, resume=resume)

    def of[Event](self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]


def at(kind: type[TrainingEvent], step: int) -> Callable[[TrainingEvent], bool]:
    return lambda event: isinstance(event, kind) and event.step == step


def assert_same_end(found: Trained, expected: Trained) -> None:
    """Every bit of the weights, and every figure that is not of time and memory."""
    assert same_bits(found.weights, expected.weights)
    spared = {"weights": {}, "elapsed_s": 0, "peak_memory_gb": 0}
    assert replace(found, **spared) == replace(expected, **spared)


def same_bits(found: dict[str, mx.array], expected: dict[str, mx.array]) -> bool:
    bits = [{name: np.array(array).tobytes() for name, array in arrays.items()} for arrays in (found, expected)]
    return bits[0] == bits[1]


def assert_same_state(folder: Path, expected: Path) -> None:
    """The last checkpoints hold the same weights, best weights and optimizer, bit for bit."""
    name = max(path.name for path in expected.iterdir())
    assert same_bits(*(dict(mx.load(str(each / name / "state.safetensors"))) for each in (folder, expected)))


VARIANTS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "dropout": {"dropout": 0.3},
    "dropout, recomputed": {"dropout": 0.3, "grad_checkpoint": True},
    "dropout, mlx-lm's way": {"dropout": 0.3, "grad_checkpoint": True, "speed": {"lean": False}},
    "compiled": {"dropout": 0.3, "speed": {"compile": "on"}},
    "half kept": {"speed": {"memory_gb": 2e-5, "disk_gb": 0}},
    "dora": {"method": "dora", "dropout": 0.1},
    "accumulation": {"accumulation": 2, "epochs": 4},
    "adafactor": {"optimizer": "adafactor"},
    "muon": {"optimizer": "muon", "method": "dora"},
    "lion": {"optimizer": "lion", "learning_rate": 1e-4},
    "sgd": {"optimizer": "sgd", "optimizer_options": {"momentum": 0.9}, "learning_rate": 0.1},
    "adadelta": {"optimizer": "adadelta", "learning_rate": 1.0},
    "constant": {"schedule": "constant", "warmup_fraction": 0.5},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_stopped_after_every_few_steps_it_ends_the_same(tiny_base: Path, tmp_path: Path, variant: str) -> None:
    whole = Training(tiny_base, tmp_path / "whole", **VARIANTS[variant])
    expected = whole.run()
    total = expected.total_steps
    assert total >= 8
    assert expected.best_step > 0
    for every in (1, 3) if variant in ("adamw", "dropout", "muon") else (3,):
        training = Training(tiny_base, tmp_path / str(every), **VARIANTS[variant])
        found = None
        for number in itertools.count():
            found = training.run(resume=number > 0, stop=at(Stepped, (number + 1) * every))
            if not found.interrupted:
                break
        assert found is not None
        assert_same_end(found, expected)
        assert_same_state(tmp_path / str(every), tmp_path / "whole")
        assert [event.step for event in training.of(Resumed)] == list(range(every, total, every))
        assert [(e.step, e.loss) for e in training.of(Stepped)] == [(e.step, e.loss) for e in whole.of(Stepped)]


@pytest.mark.parametrize("variant", ["dropout", "muon"])
def test_killed_at_every_event_it_ends_the_same(tiny_base: Path, tmp_path: Path, variant: str) -> None:
    whole = Training(tiny_base, tmp_path / "whole", **VARIANTS[variant])
    expected = whole.run()
    for moment in range(0, len(whole.events), 3):
        training = Training(tiny_base, tmp_path / str(moment), **VARIANTS[variant])
        count = itertools.count()
        with pytest.raises(Killed):
            training.run(kill=lambda event, count=count, moment=moment: next(count) == moment)
        done = max((event.step for event in training.of(Stepped)), default=0)
        assert_same_end(training.run(resume=True), expected)
        assert_same_state(tmp_path / str(moment), tmp_path / "whole")
        for resumed in training.of(Resumed):
            assert done - resumed.step <= training.recipe.checkpoint_steps, "no more is lost than that"


def test_killed_again_and_again_it_ends_the_same(tiny_base: Path, tmp_path: Path) -> None:
    """A process that dies after each five steps gets there, since every four are kept."""
    expected = Training(tiny_base, tmp_path / "whole").run()
    training, deaths = Training(tiny_base, tmp_path / "run"), 0
    while True:
        steps = itertools.count(1)
        try:
            found = training.run(
                resume=deaths > 0, kill=lambda event, steps=steps: isinstance(event, Stepped) and next(steps) == 5
            )
        except Killed:
            deaths += 1
            continue
        break
    assert deaths == 2
    assert_same_state(tmp_path / "run", tmp_path / "whole")
    assert_same_end(found, expected)


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_anew(tiny_base: Path, tmp_path: Path) -> None:
    expected = Training(tiny_base, tmp_path / "whole").run()
    training = Training(tiny_base, tmp_path / "run")
    with pytest.raises(Killed):
        training.run(kill=lambda event: isinstance(event, Planned))
    assert_same_end(training.run(resume=True), expected)
    assert not training.of(Resumed)


def test_a_run_that_had_ended_ends_again_at_once(tiny_base: Path, tmp_path: Path) -> None:
    training = Training(tiny_base, tmp_path / "run", checkpoint_steps=1)
    expected = training.run()
    training.events.clear()
    assert_same_end(training.run(resume=True), expected)
    assert not training.of(Stepped)


def test_time_and_tokens_go_on_from_where_they_were(tiny_base: Path, tmp_path: Path) -> None:
    training = Training(tiny_base, tmp_path / "run")

    def ticking() -> Surroundings:
        ticks = iter(range(1, 1_000_000))
        return Surroundings(clock=lambda: float(next(ticks)))

    training.run(stop=at(Stepped, 5), around=ticking())
    (stepped, *_) = reversed(training.of(Stepped))
    training.run(resume=True, around=ticking())
    (resumed,) = training.of(Resumed)
    assert resumed.step == 5
    assert resumed.elapsed_s >= stepped.elapsed_s > 5
    later = [event for event in training.of(Stepped) if event.step > 5]
    assert all(event.elapsed_s > resumed.elapsed_s for event in later)
    assert later[0].eta_s > 0, "known right after the resume"


# Early stopping


OTHER = TokenisedSet([Row(row.tokens, row.weights) for row in rows(3, 3).rows], dropped=0)
for row in OTHER.rows:
    row.tokens[-3:] = 77  # the form is learnt, then what makes it worse
LATE: dict[str, Any] = {"epochs": 8, "learning_rate": 0.1, "spike_factor": 0, "patience": 2, "schedule": "constant"}


def test_the_count_to_an_early_stop_goes_on(tiny_base: Path, tmp_path: Path) -> None:
    whole = Training(tiny_base, tmp_path / "whole", OTHER, **LATE)
    expected = whole.run()
    assert expected.stopped_early
    assert 0 < expected.best_step < expected.steps
    for step in range(1, expected.steps, 2):
        training = Training(tiny_base, tmp_path / str(step), OTHER, **LATE)
        assert training.run(stop=at(Stepped, step)).interrupted
        assert_same_end(training.run(resume=True), expected)


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_an_early_stop_stays_one_when_the_process_ends_with_it(tiny_base: Path, tmp_path: Path, how: str) -> None:
    settings = {**LATE, "checkpoint_steps": 1}
    whole = Training(tiny_base, tmp_path / "whole", OTHER, **settings)
    expected = whole.run()
    assert expected.stopped_early
    training = Training(tiny_base, tmp_path / "run", OTHER, **settings)
    if how == "killed":
        with pytest.raises(Killed):
            training.run(kill=at(Saved, expected.steps))
        assert_same_end(training.run(resume=True), expected)
    else:
        found = training.run(stop=at(Stepped, expected.steps))
        assert not found.interrupted, "it would have ended here"
        assert_same_end(found, expected)


# A rollback in between


def spoiling(monkeypatch: pytest.MonkeyPatch, *failing: int) -> None:
    """The loss of these steps is not finite, whatever process takes them."""
    at_work: list[int] = []
    real, step_key = Losses.loss_and_gradients, trainer.step_key

    def noted(seed: int, step: int, part: int) -> mx.array:
        at_work[:] = [step]
        return step_key(seed, step, part)

    def spoilt(self: Losses, *arguments: Any) -> Any:
        loss, found = real(self, *arguments)
        return (loss * float("nan") if at_work[0] in failing else loss), found

    monkeypatch.setattr(trainer, "step_key", noted)
    monkeypatch.setattr(Losses, "loss_and_gradients", spoilt)


@pytest.mark.parametrize("failing", [(3,), (6,), (7, 8), (2, 6)])
def test_a_kill_around_a_rollback_changes_nothing(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: tuple[int, ...]
) -> None:
    spoiling(monkeypatch, *failing)
    whole = Training(tiny_base, tmp_path / "whole")
    expected = whole.run()
    assert expected.rollbacks == len(failing) == len(whole.of(RolledBack))
    for moment in range(2, len(whole.events), 3):
        training = Training(tiny_base, tmp_path / str(moment))
        count = itertools.count()
        with pytest.raises(Killed):
            training.run(kill=lambda event, count=count, moment=moment: next(count) == moment)
        assert_same_end(training.run(resume=True), expected)


def test_a_stop_after_a_rollback_changes_nothing(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiling(monkeypatch, 6)
    expected = Training(tiny_base, tmp_path / "whole").run()
    for step in (7, 8, 9):
        training = Training(tiny_base, tmp_path / str(step))
        assert training.run(stop=at(Stepped, step)).rollbacks == 1
        assert_same_end(training.run(resume=True), expected)


@pytest.mark.parametrize("step", [5, 6])
def test_a_stop_before_a_rollback_changes_nothing(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    spoiling(monkeypatch, 7)
    expected = Training(tiny_base, tmp_path / "whole").run()
    training = Training(tiny_base, tmp_path / "run")
    training.run(stop=at(Stepped, step))
    assert_same_end(training.run(resume=True), expected)


@pytest.mark.parametrize("keep", [1, 2])
def test_several_stops_before_a_rollback_change_nothing(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int
) -> None:
    """However many stops there were, the checkpoint that is rolled back to is still there."""
    spoiling(monkeypatch, 8)
    expected = Training(tiny_base, tmp_path / "whole").run()
    training = Training(tiny_base, tmp_path / "run", keep_checkpoints=keep)
    for step in (5, 6, 7):
        training.run(resume=step > 5, stop=at(Stepped, step))
    assert_same_end(training.run(resume=True), expected)
    assert len(training.checkpoints.names()) == keep


def test_a_kill_after_a_stop_and_before_a_rollback_changes_nothing(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiling(monkeypatch, 7)
    expected = Training(tiny_base, tmp_path / "whole").run()
    training = Training(tiny_base, tmp_path / "run")
    training.run(stop=at(Stepped, 5))
    for event in (at(Stepped, 6), lambda event: isinstance(event, RolledBack)):
        with pytest.raises(Killed):
            training.run(resume=True, kill=event)
    assert_same_end(training.run(resume=True), expected)


def test_a_stop_between_rollbacks_changes_nothing(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows given up and the rate's factor of the first are known to the second."""
    spoiling(monkeypatch, 6, 8)
    expected = Training(tiny_base, tmp_path / "whole").run()
    for stops in ((5,), (7,), (5, 7)):
        training = Training(tiny_base, tmp_path / str(stops))
        for number, step in enumerate(stops):
            training.run(resume=number > 0, stop=at(Stepped, step))
        assert_same_end(training.run(resume=True), expected)


# What is found on disk


def test_a_damaged_newest_checkpoint_costs_the_steps_since_the_one_before(tiny_base: Path, tmp_path: Path) -> None:
    expected = Training(tiny_base, tmp_path / "whole").run()
    training = Training(tiny_base, tmp_path / "run")
    with pytest.raises(Killed):
        training.run(kill=at(Stepped, 10))
    (tmp_path / "run" / "step-00000008" / "state.safetensors").write_bytes(b"half")
    found = training.run(resume=True)
    assert_same_end(found, expected)
    assert [event.step for event in training.of(Resumed)] == [4]
    (warned,) = training.of(Warned)
    assert "step-00000008" in warned.text
    assert "damaged" in warned.text
    assert training.checkpoints.names() == ["step-00000008", "step-00000012"][-2:]


def test_another_identity_is_an_error_before_any_work(tiny_base: Path, tmp_path: Path) -> None:
    training = Training(tiny_base, tmp_path / "run")
    training.run(stop=at(Stepped, 2))
    other = Checkpoints(tmp_path / "run", {**IDENTITY, "base": "c"}, 2)
    kept = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    model, _ = load(str(tiny_base))
    lora.attach(model, training.recipe)
    events: list[TrainingEvent] = []
    with pytest.raises(AfsError, match="the checkpoint was made with another base"):
        trainer.train(
            model, training.recipe, TRAIN, VALID, events.append, lambda: False, Surroundings(other), resume=True
        )
    assert not [event for event in events if isinstance(event, Stepped | Validated | StoppedEarly)]
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == kept
