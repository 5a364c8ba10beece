"""A step that goes wrong is undone, its rows left out, the rate halved and all of it said; noise is no reason."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map
from mlx_lm import load

from afs_mlx.core.errors import AfsError
from afs_mlx.engine.training import lora, trainer
from afs_mlx.engine.training.checkpoints import Checkpoints
from afs_mlx.engine.training.compute.losses import Losses
from afs_mlx.engine.training.events import RolledBack, Stepped, TrainingEvent, Validated
from afs_mlx.engine.training.progress import RECENT, Progress
from afs_mlx.engine.training.rows import Row, TokenisedSet
from afs_mlx.engine.training.schedule import learning_rate
from afs_mlx.engine.training.trainer import Surroundings
from afs_mlx.schema.recipe import Recipe

ANSWER = [17, 301, 44, 9, 523]
QUICK: dict[str, Any] = {
    "rank": 2,
    "alpha": 4,
    "layers": 1,
    "targets": ("q_proj", "down_proj"),
    "epochs": 2,
    "batch_tokens": 20,
    "learning_rate": 1e-3,
    "checkpoint_steps": 6,
    "samples": 0,
}
NAN = math.nan
type Change = Callable[[float, Any], tuple[float, Any]]


def rows(count: int, seed: int = 1) -> TokenisedSet:
    """Equally long rows, one a step, their answers all the same."""
    rng = np.random.default_rng(seed)
    tokens = [[*rng.integers(1, 600, 10).tolist(), *ANSWER] for _ in range(count)]
    return TokenisedSet([Row(np.array(t, dtype=np.int32), np.arange(15) >= 10) for t in tokens], dropped=0)


class Training:
    """Sixteen rows, one a step, two epochs; `changes` turns loss and gradients of a step each time it is taken."""

    def __init__(
        self,
        base: Path,
        monkeypatch: pytest.MonkeyPatch,
        changes: dict[int, Sequence[Change | None] | Change],
        folder: Path | None = None,
        train: TokenisedSet | None = None,
        **settings: Any,
    ) -> None:
        self.recipe = Recipe.model_validate({**QUICK, **settings})
        self.model, _ = load(str(base))
        lora.attach(self.model, self.recipe)
        self.events: list[TrainingEvent] = []
        self.taken: list[tuple[int, tuple[int, ...]]] = []
        self.failed: AfsError | None = None
        real, step_key = Losses.loss_and_gradients, trainer.step_key

        def noted(seed: int, step: int, part: int) -> mx.array:
            self.at_work = step
            return step_key(seed, step, part)

        def changed(losses: Losses, parameters: Any, batch: Any, key: mx.array) -> Any:
            times = sum(step == self.at_work for step, _ in self.taken)
            self.taken.append((self.at_work, batch.rows))
            found = real(losses, parameters, batch, key)
            change = changes.get(self.at_work)
            if isinstance(change, Sequence):
                change = change[times] if times < len(change) else None
            return change(*found) if change else found

        monkeypatch.setattr(trainer, "step_key", noted)
        monkeypatch.setattr(Losses, "loss_and_gradients", changed)
        around = Surroundings(checkpoints=Checkpoints(folder, {}, 2) if folder else None)
        sets = train or rows(16), rows(3, 2)
        try:
            self.trained = trainer.train(self.model, self.recipe, *sets, self.events.append, lambda: False, around)
        except AfsError as error:
            self.failed = error

    def of[Event](self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def rollbacks(self) -> list[RolledBack]:
        return self.of(RolledBack)


def times(factor: float) -> Change:
    return lambda loss, gradients: (loss * factor, gradients)


def bad_gradient(value: float) -> Change:
    """One entry of one array."""

    def change(loss: Any, gradients: Any) -> Any:
        done: list[bool] = []

        def first(array: mx.array) -> mx.array:
            if done:
                return array
            done.append(True)
            return mx.where(mx.arange(array.size).reshape(array.shape) == 1, value, array)

        return loss, tree_map(first, gradients)

    return change


WRONG: dict[str, tuple[Change, str]] = {
    "a loss of NaN": (times(NAN), "the loss is not finite"),
    "an infinite loss": (times(math.inf), "the loss is not finite"),
    "a gradient of NaN": (bad_gradient(NAN), "the gradient is not finite"),
    "an infinite gradient": (bad_gradient(math.inf), "the gradient is not finite"),
    "a spike": (times(40), "the loss rose from"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_step_that_goes_wrong_is_undone_left_out_and_told(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    change, reason = WRONG[wrong]
    found = Training(tiny_base, monkeypatch, {15: change})
    (event,) = found.rollbacks
    assert (event.failed_step, event.step, event.rate_factor) == (15, 12, 0.5), "back to the last checkpoint"
    assert reason in event.reason
    steps = [(step.step, step.learning_rate) for step in found.of(Stepped)]
    full = {step: learning_rate(found.recipe, step, 32) for step in range(1, 33)}
    before = [(step, full[step]) for step in range(1, 15)]
    after = [(step, full[step] / 2) for step in (13, 14, *range(16, 33))]
    assert steps == [*before, *after], "the same steps at half the rate, without the one that failed"
    assert found.taken[12][1] == found.taken[15][1], "step 13 is of the same rows as before"
    assert (found.trained.rollbacks, found.trained.steps) == (1, 32)
    assert all(mx.isfinite(array).all().item() for array in found.trained.weights.values())


def test_going_back_brings_back_weights_and_optimizer(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the rate's factor at 1, a rollback is as if the failed step had not been taken."""
    monkeypatch.setattr(trainer, "AFTER_ROLLBACK", 1.0)
    with monkeypatch.context() as patch:
        found = Training(tiny_base, patch, {15: times(NAN)})
    first = {step.step: step.loss for step in found.of(Stepped)[:14]}
    again = {step.step: step.loss for step in found.of(Stepped)[14:16]}
    assert again == {step: first[step] for step in (13, 14)}, "bit for bit"
    assert [event.step for event in found.of(Validated)] == [0, 16, 32]


def test_the_best_weights_of_undone_steps_are_undone_too(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation after step 16 lies behind the checkpoint at 12: taken twice, and the second one counts."""
    found = Training(tiny_base, monkeypatch, {18: times(NAN)}, learning_rate=5e-3)
    validations = [(event.step, event.loss) for event in found.of(Validated)]
    assert [step for step, _ in validations] == [0, 16, 16, 32]
    assert validations[1] != validations[2], "at half the rate"
    assert found.trained.best_valid_loss == min(loss for _, loss in [validations[0], *validations[2:]])


def test_each_further_rollback_halves_the_rate_again(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Training(tiny_base, monkeypatch, {3: times(NAN), 9: times(NAN), 20: times(math.inf)})
    told = [(event.failed_step, event.step, event.rate_factor) for event in found.rollbacks]
    assert told == [(3, 0, 0.5), (9, 6, 0.25), (20, 18, 0.125)]
    assert (found.failed, found.trained.rollbacks) == (None, 3)
    last = found.of(Stepped)[-1]
    assert last.learning_rate == learning_rate(found.recipe, 32, 32) / 8
    assert [step for step, _ in found.taken].count(3) == 1, "never tried again"


def test_several_failures_from_one_checkpoint_are_all_left_out(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Training(tiny_base, monkeypatch, {8: times(NAN), 10: times(NAN), 11: times(NAN)})
    assert [(event.failed_step, event.step) for event in found.rollbacks] == [(8, 6), (10, 6), (11, 6)]
    assert [event.step for event in found.of(Stepped)][-23:] == [7, 9, *range(12, 33)]
    assert found.trained.supervised_tokens_seen == 5 * (32 - 3), "what was given up does not count as seen"


def test_what_stays_wrong_ends_after_three_rollbacks_with_checkpoints_intact(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Training(tiny_base, monkeypatch, {step: times(NAN) for step in range(14, 33)}, tmp_path)
    assert found.failed is not None
    assert "the loss is not finite at step 17, also after 3 rollbacks" in found.failed.what
    assert "learning_rate" in found.failed.fix
    assert len(found.rollbacks) == 3
    kept = Checkpoints(tmp_path, {}, 2)
    assert kept.names() == ["step-00000006", "step-00000012"]
    latest = kept.latest()
    assert latest is not None
    assert latest[0].progress.step == 12
    assert all(mx.isfinite(array).all().item() for array in latest[0].weights.values())


def test_wrong_from_the_first_step_on(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Training(tiny_base, monkeypatch, {step: times(NAN) for step in range(1, 33)})
    assert [event.failed_step for event in found.rollbacks] == [1, 2, 3]
    assert found.failed is not None
    assert "at step 4" in found.failed.what
    assert not found.of(Stepped)


def test_nothing_wrong_is_ever_saved(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The failing step is one that saves and validates."""
    found = Training(tiny_base, monkeypatch, {6: times(NAN), 16: bad_gradient(NAN)}, tmp_path)
    assert (found.failed, found.trained.rollbacks) == (None, 2)
    for name in Checkpoints(tmp_path, {}, 2).names():
        arrays = dict(mx.load(str(tmp_path / name / "state.safetensors")))
        assert all(mx.isfinite(array).all().item() for array in arrays.values())


def test_rows_that_do_it_by_themselves(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No loss is touched: a row's weight is what float32 cannot hold."""
    poisoned = rows(16)
    poisoned.rows[5].weights[-1] = np.float32(3e38)
    found = Training(tiny_base, monkeypatch, {}, train=poisoned)
    assert [event.failed_step for event in found.rollbacks] == [
        step for step, numbers in dict(found.taken).items() if numbers == (5,)
    ]
    assert all(event.reason for event in found.rollbacks)
    assert (found.failed, found.trained.rollbacks) == (None, 2), "once an epoch"
    assert found.trained.best_valid_loss < found.trained.base_valid_loss


# What is no reason


def test_a_usual_loss_may_be_as_noisy_as_it_likes(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    noise = {step: times(float(factor)) for step, factor in enumerate(rng.lognormal(0, 0.3, 32), start=1)}
    assert Training(tiny_base, monkeypatch, noise).rollbacks == []


def test_no_batch_of_real_rows_is_taken_for_a_spike(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Very different rows, a rate that is high, nothing touched."""
    rng = np.random.default_rng(3)
    tokens = [rng.integers(1, 700, int(rng.integers(4, 16))).astype(np.int32) for _ in range(12)]
    mixed = TokenisedSet([*rows(4).rows, *(Row(t, np.arange(len(t)) >= len(t) - 2) for t in tokens)], dropped=0)
    found = Training(tiny_base, monkeypatch, {}, train=mixed, learning_rate=1e-2, epochs=6)
    assert found.rollbacks == []
    assert found.trained.best_valid_loss < found.trained.base_valid_loss


@pytest.mark.parametrize(("factor", "rolls"), [(0, 0), (3, 1), (50, 0)])
def test_the_recipe_says_what_a_spike_is(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch, factor: float, rolls: int
) -> None:
    assert len(Training(tiny_base, monkeypatch, {15: times(8)}, spike_factor=factor).rollbacks) == rolls


def test_at_factor_zero_what_is_not_finite_still_goes_back(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(Training(tiny_base, monkeypatch, {15: times(NAN)}, spike_factor=0).rollbacks) == 1


@pytest.mark.parametrize(
    ("usual", "loss", "factor", "spikes"),
    [
        (2.0, 5.9, 3, False),
        (2.0, 6.1, 3, True),
        (0.1, 0.9, 3, False),  # small losses triple from one batch to the next
        (0.1, 1.2, 3, True),
        (2.0, 1e30, 0, False),
        (2.0, NAN, 0, True),
        (2.0, math.inf, 0, True),
        (2.0, 3.5, 1.5, True),
    ],
)
def test_where_a_spike_begins(usual: float, loss: float, factor: float, spikes: bool) -> None:
    progress = Progress(recent=[usual] * (RECENT - 1) + [usual * 100])
    assert bool(progress.spike(loss, factor)) is spikes


def test_a_few_losses_are_no_measure() -> None:
    progress = Progress()
    for _ in range(RECENT // 2 - 1):
        progress.note_loss(0.1)
        assert progress.spike(1e6, 3) == ""
    progress.note_loss(0.1)
    assert progress.spike(1e6, 3)


def test_the_measure_moves_along() -> None:
    progress = Progress()
    for loss in [9.0] * 50 + [1.0] * RECENT:
        progress.note_loss(loss)
    assert progress.recent == [1.0] * RECENT
    assert progress.spike(4.0, 3)
    assert replace(progress, recent=[9.0] * RECENT).spike(4.0, 3) == ""
