"""The loop: it learns, repeats bit for bit, keeps the best weights, stops when asked, refuses what cannot work."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm import load
from mlx_lm.tokenizer_utils import TokenizerWrapper

from afs_mlx.core.errors import AfsError
from afs_mlx.engine.bases.loading import LoadedBase, load_base
from afs_mlx.engine.training import lora, trainer
from afs_mlx.engine.training.compute.losses import Losses
from afs_mlx.engine.training.events import Planned, Sampled, Saved, Stepped, StoppedEarly, TrainingEvent, Validated
from afs_mlx.engine.training.rows import TokenisedSet, tokenise
from afs_mlx.engine.training.samples import sampler
from afs_mlx.engine.training.schedule import learning_rate
from afs_mlx.engine.training.trainer import Surroundings
from afs_mlx.schema.example import Example
from afs_mlx.schema.message import Message
from afs_mlx.schema.recipe import Recipe

RECIPE: dict[str, Any] = {"rank": 4, "alpha": 8, "learning_rate": 3e-3, "epochs": 4, "batch_tokens": 160}
BASE_FACTS = {"id": "tiny-qwen2", "weights_sha256": "0" * 64}


def pair(number: int, answer: str) -> Example:
    question = f"routine {number}: lda #$0{number} sta $1{number}"
    return Example(messages=(Message(role="user", content=question), Message(role="assistant", content=answer)))


def tokenised(tokenizer: TokenizerWrapper, answer: str = "stz ${n}", count: int = 4) -> TokenisedSet:
    return tokenise([pair(n, answer.format(n=n)) for n in range(count)], tokenizer, Recipe(), "rows")


class Outcome:
    """A training with everything that it reported."""

    def __init__(
        self,
        base: Path,
        should_stop: Callable[[], bool] = lambda: False,
        valid_answer: str = "stz ${n}",
        poison: Callable[[LoadedBase, TrainingEvent], None] = lambda base, event: None,
        around: Callable[["Outcome"], Surroundings] = lambda outcome: Surroundings(),
        **recipe: Any,
    ) -> None:
        self.recipe = Recipe.model_validate({**RECIPE, **recipe})
        self.base = load_base(base)
        self.keys = lora.attach(self.base.model, self.recipe)
        self.valid = tokenised(self.base.tokenizer, valid_answer)
        self.events: list[TrainingEvent] = []

        def report(event: TrainingEvent) -> None:
            self.events.append(event)
            poison(self.base, event)

        train = tokenised(self.base.tokenizer)
        sets = train, self.valid
        self.trained = trainer.train(self.base.model, self.recipe, *sets, report, should_stop, around(self))

    @property
    def steps(self) -> list[Stepped]:
        return [event for event in self.events if isinstance(event, Stepped)]

    @property
    def validations(self) -> list[Validated]:
        return [event for event in self.events if isinstance(event, Validated)]

    def loss_now(self) -> float:
        """The validation loss of the weights that are in the model."""
        self.base.model.eval()
        total = 0.0
        for row in self.valid.rows:
            logits = self.base.model(mx.array(row.tokens[None, :-1]))[0]
            losses = nn.losses.cross_entropy(logits, mx.array(row.tokens[1:]), reduction="none")
            total += mx.sum(losses * mx.array(row.weights[1:])).item()
        return total / self.valid.supervised_tokens


@pytest.fixture(scope="module")
def outcome(tiny_base: Path) -> Outcome:
    return Outcome(tiny_base, dropout=0.1, epochs=8)


def test_a_small_set_is_learnt(outcome: Outcome) -> None:
    assert outcome.trained.best_valid_loss < 0.6 * outcome.trained.base_valid_loss
    assert outcome.steps[-1].loss < 0.6 * outcome.steps[0].loss


def test_what_is_reported_adds_up(outcome: Outcome) -> None:
    (plan,) = [event for event in outcome.events if isinstance(event, Planned)]
    trained, steps = outcome.trained, outcome.steps
    assert outcome.events[0] is plan
    assert [step.step for step in steps] == list(range(1, plan.total_steps + 1))
    assert trained.steps == trained.total_steps == plan.total_steps
    assert plan.train_rows == plan.valid_rows == 4
    per_epoch = plan.total_steps // 8
    assert [step.epoch for step in steps] == [epoch for epoch in range(1, 9) for _ in range(per_epoch)]
    assert trained.supervised_tokens_seen == 8 * plan.supervised_tokens == sum(s.supervised_tokens for s in steps)
    assert trained.last_train_loss == steps[-1].loss
    assert plan.trainable_parameters == sum(array.size for array in trained.weights.values())
    assert not trained.interrupted
    best = min(outcome.validations, key=lambda event: event.loss)
    assert (trained.best_step, trained.best_valid_loss) == (best.step, best.loss)
    assert outcome.validations[0].step == 0
    assert outcome.validations[0].loss == trained.base_valid_loss


def test_the_same_seed_gives_the_same_bits(tiny_base: Path, outcome: Outcome) -> None:
    again = Outcome(tiny_base, dropout=0.1, epochs=8)
    assert [step.loss for step in again.steps] == [step.loss for step in outcome.steps]
    assert [event.loss for event in again.validations] == [event.loss for event in outcome.validations]
    assert again.trained.weights.keys() == outcome.trained.weights.keys()
    assert all(mx.array_equal(array, outcome.trained.weights[name]) for name, array in again.trained.weights.items())


def test_another_seed_gives_other_weights(tiny_base: Path, outcome: Outcome) -> None:
    other = Outcome(tiny_base, dropout=0.1, epochs=8, seed=1)
    assert other.trained.weights.keys() == outcome.trained.weights.keys()
    assert other.trained.best_valid_loss != outcome.trained.best_valid_loss


@pytest.mark.parametrize("setting", [{"layers": 2}, {"grad_checkpoint": True}, {"layers": 2, "grad_checkpoint": True}])
def test_ways_to_save_work_or_memory_also_learn(tiny_base: Path, setting: dict[str, Any]) -> None:
    found = Outcome(tiny_base, dropout=0.1, epochs=8, **setting)
    assert found.trained.best_valid_loss < 0.8 * found.trained.base_valid_loss
    trained_blocks = {name.split(".")[2] for name in found.trained.weights}
    assert trained_blocks == ({"2", "3"} if "layers" in setting else {"0", "1", "2", "3"})


def test_validation_is_whole_and_always_the_same(tiny_base: Path) -> None:
    found = Outcome(tiny_base, validations_per_epoch=2, learning_rate=1e-9, batch_tokens=50)
    assert {event.supervised_tokens for event in found.validations} == {found.valid.supervised_tokens}
    assert len(found.validations) == 1 + 2 * 4
    # At this rate nothing moves, so another choice or order of rows would show.
    assert [event.loss for event in found.validations] == pytest.approx([found.loss_now()] * 9, rel=1e-5)


def test_validation_does_not_disturb_the_training(tiny_base: Path) -> None:
    seldom = Outcome(tiny_base, dropout=0.2, validations_per_epoch=1, batch_tokens=50)
    often = Outcome(tiny_base, dropout=0.2, validations_per_epoch=4, batch_tokens=50)
    assert len(often.validations) > len(seldom.validations)
    assert [step.loss for step in often.steps] == [step.loss for step in seldom.steps]


def test_the_best_weights_are_kept_not_the_last(tiny_base: Path) -> None:
    """Validation wants other answers to the same questions: first the form is learnt, then the wrong answer."""
    found = Outcome(tiny_base, valid_answer="inc ${n}", epochs=24, learning_rate=4e-2)
    trained, last = found.trained, found.validations[-1]
    assert 0 < trained.best_step < trained.steps
    assert last.loss > 1.1 * trained.best_valid_loss
    assert found.loss_now() == pytest.approx(trained.best_valid_loss, rel=1e-5)
    in_model = lora.adapter_weights(found.base.model)
    assert all(mx.array_equal(array, in_model[name]) for name, array in trained.weights.items())
    flags = [event.best for event in found.validations]
    losses = [event.loss for event in found.validations]
    assert flags == [loss < min(losses[:i], default=math.inf) for i, loss in enumerate(losses)]


def test_when_nothing_helps_the_base_stays(tiny_base: Path) -> None:
    base = load_base(tiny_base)
    # The base's own favourite tokens are the answer, so that every step away from it is a loss.
    likely = int(mx.argmax(base.model(mx.array([[5]]))[0, -1]).item())
    row = tokenised(base.tokenizer).rows[0]
    row.tokens[row.supervised] = likely
    recipe = Recipe(**{**RECIPE, "learning_rate": 1.0, "epochs": 1, "warmup_fraction": 0})
    lora.attach(base.model, recipe)
    sets = tokenised(base.tokenizer), TokenisedSet([row], 0)
    trained = trainer.train(base.model, recipe, *sets, lambda event: None, lambda: False)
    assert trained.best_step == 0
    assert trained.best_valid_loss == trained.base_valid_loss
    zero = [bool(mx.all(array == 0)) for name, array in trained.weights.items() if name.endswith("lora_b")]
    assert zero
    assert all(zero)


def test_stopping_ends_after_the_step_with_weights_to_use(tiny_base: Path) -> None:
    asked: list[int] = []
    # Four steps are an epoch; the third has no validation of its own.
    found = Outcome(tiny_base, should_stop=lambda: len(asked) == 2 or bool(asked.append(1)), batch_tokens=50)
    trained = found.trained
    assert trained.interrupted
    assert trained.steps == 3 < trained.total_steps
    assert found.steps[-1].step == 3
    assert isinstance(found.events[-1], Validated), "what was learnt so far is measured"
    assert found.events[-1].step == 3
    assert trained.best_valid_loss < trained.base_valid_loss
    assert found.loss_now() == pytest.approx(trained.best_valid_loss, rel=1e-5)


def test_a_wish_to_stop_after_the_last_step_interrupts_nothing(tiny_base: Path) -> None:
    found = Outcome(tiny_base, should_stop=lambda: True, epochs=1, batch_tokens=10_000)
    assert found.trained.steps == found.trained.total_steps == 1
    assert not found.trained.interrupted


def _poison_norm(base: LoadedBase, event: TrainingEvent) -> None:
    if isinstance(event, Planned):
        base.model.model.norm.weight = base.model.model.norm.weight * math.nan


def test_a_broken_base_is_an_error_before_the_first_step(tiny_base: Path) -> None:
    with pytest.raises(AfsError, match="the validation loss is not finite") as caught:
        Outcome(tiny_base, poison=_poison_norm)
    assert caught.value.where == "step 0"
    assert "learning_rate" in caught.value.fix


def test_the_block_class_is_restored_after_training(tiny_base: Path) -> None:
    block = type(load_base(tiny_base).model.layers[0])
    original = block.__call__
    with pytest.raises(AfsError):
        Outcome(tiny_base, poison=_poison_norm, grad_checkpoint=True, speed={"lean": False})
    assert block.__call__ is original


@pytest.mark.parametrize(
    "speed",
    [{}, {"lean": False}, {"compile": "on"}, {"keep_frozen": False}],
    ids=["default", "mlx-lm", "compiled", "run anew"],
)
def test_the_model_is_mlx_lms_again_after_training(tiny_base: Path, speed: dict[str, Any]) -> None:
    """No placeholder of a compiled step, no gradient's tracer and no other weights than the best are left in it."""
    found = Outcome(tiny_base, layers=2, dropout=0.1, speed=speed, epochs=2)
    assert found.loss_now() == pytest.approx(found.trained.best_valid_loss, rel=1e-5)
    names = dict(tree_flatten(found.base.model.trainable_parameters()))
    assert names.keys() == found.trained.weights.keys()


# What surrounds a training


def test_early_stopping_waits_for_so_many_validations_without_a_better_one(tiny_base: Path) -> None:
    settings: dict[str, Any] = {"valid_answer": "inc ${n}", "epochs": 24, "learning_rate": 4e-2}
    whole = Outcome(tiny_base, **settings)
    found = Outcome(tiny_base, **settings, patience=3)
    losses = [event.loss for event in whole.validations]
    late = next(i for i in range(len(losses)) if i >= 3 and min(losses[i - 2 : i + 1]) >= min(losses[: i - 2]))
    assert [event.loss for event in found.validations] == losses[: late + 1]
    (stopped,) = [event for event in found.events if isinstance(event, StoppedEarly)]
    assert stopped == found.events[-1] == StoppedEarly(found.trained.steps, 3)
    assert (found.trained.stopped_early, found.trained.interrupted) == (True, False)
    assert found.trained.steps < found.trained.total_steps
    assert not whole.trained.stopped_early


@pytest.mark.parametrize(
    ("losses", "last"),
    [
        ([5, 6, 4, 6, 6, 3], 4),  # a better one between begins the count anew
        ([5, 5, 5, 4], 2),  # as good is not better
        ([5, 4, 3, 2, 1, 2, 2, 0], 6),
        ([5, 6, 4, 6, 3, 4, 2, 1, 9], None),
    ],
)
def test_the_count_to_an_early_stop(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch, losses: list[int], last: int | None
) -> None:
    said = iter(losses)
    monkeypatch.setattr(Losses, "loss", lambda self, parameters, batch: mx.array(float(next(said)) * batch.weight))
    found = Outcome(tiny_base, epochs=len(losses) - 1, batch_tokens=10_000, patience=2)
    seen = losses if last is None else losses[: last + 1]
    assert [event.loss for event in found.validations] == pytest.approx(seen)
    assert found.trained.stopped_early is (last is not None)
    assert found.trained.best_step == seen.index(min(seen))


def test_the_clock_is_the_one_that_is_given_and_eta_is_what_is_left(tiny_base: Path) -> None:
    """A clock that jumps a second each time it is looked at: the machine's own time takes no part."""
    ticks = iter(range(1, 100_000))
    found = Outcome(tiny_base, around=lambda outcome: Surroundings(clock=lambda: float(next(ticks))), batch_tokens=50)
    elapsed = [step.elapsed_s for step in found.steps]
    assert elapsed == sorted(set(elapsed))
    assert all(seconds == int(seconds) for seconds in elapsed)
    left = [step.eta_s for step in found.steps]
    assert left == sorted(set(left), reverse=True)
    assert left[0] > left[-1] == 0
    seen = np.cumsum([step.supervised_tokens for step in found.steps])
    rates = [step.tokens_per_s for step in found.steps]
    assert rates == pytest.approx(seen / np.arange(1, len(seen) + 1)), "one tick a step: validations are left out"


def test_warnings_of_the_machine_are_passed_on(tiny_base: Path) -> None:
    said = iter([["on battery"], [], ["swap"]])
    found = Outcome(tiny_base, around=lambda outcome: Surroundings(watch=lambda: next(said, [])), batch_tokens=50)
    kinds = [type(event).__name__ for event in found.events]
    texts = [event.text for event in found.events if type(event).__name__ == "Warned"]
    assert texts == ["on battery", "swap"]
    assert kinds[kinds.index("Warned") - 1] == "Stepped"


def test_sample_answers_are_of_the_weights_now_and_disturb_nothing(tiny_base: Path) -> None:
    def asking(outcome: Outcome) -> Surroundings:
        base, rows = outcome.base, outcome.valid.rows
        return Surroundings(sample=sampler(base.model, base.tokenizer, rows, list("abcd"), 2, 12))

    quiet = Outcome(tiny_base, dropout=0.1, epochs=24)
    found = Outcome(tiny_base, dropout=0.1, epochs=24, around=asking)
    assert [step.loss for step in found.steps] == [step.loss for step in quiet.steps]
    assert [event.loss for event in found.validations] == [event.loss for event in quiet.validations]
    samples = [event for event in found.events if isinstance(event, Sampled)]
    assert [(event.question, event.expected) for event in samples[:2]] == [("a", "stz $0"), ("d", "stz $3")]
    assert [event.step for event in samples] == [event.step for event in found.validations for _ in range(2)]
    assert samples[0].answer != samples[0].expected
    assert [event.answer for event in samples[-2:]] == ["stz $0", "stz $3"], "learnt by heart, and read from the model"


def test_nothing_is_saved_where_there_is_nowhere_to_save(tiny_base: Path) -> None:
    assert not [event for event in Outcome(tiny_base, checkpoint_steps=1).events if isinstance(event, Saved)]


def test_the_rate_of_the_schedule_is_the_rate_that_moves_the_weights(tiny_base: Path) -> None:
    """Adam's first step is in proportion to the rate; b starts at zero, so after it b is the step."""

    def first_step(rate: float) -> tuple[float, float]:
        found = Outcome(tiny_base, learning_rate=rate, epochs=1, batch_tokens=10_000, weight_decay=0)
        b = [np.abs(np.array(a)).max() for name, a in found.trained.weights.items() if name.endswith("lora_b")]
        assert found.trained.best_step == 1
        return found.steps[0].learning_rate, float(max(b))

    (slow, small), (fast, large) = first_step(1e-5), first_step(4e-5)
    assert fast / slow == pytest.approx(4)
    assert large / small == pytest.approx(4, rel=1e-3)


# The recipe against the base


def test_a_new_adapter_changes_no_answer_and_is_all_that_trains(tiny_base: Path) -> None:
    base, tokens = load_base(tiny_base), mx.array([[5, 6, 7]])
    before = base.model(tokens)
    keys = lora.attach(base.model, Recipe(rank=4, alpha=8))
    assert mx.array_equal(base.model(tokens), before)
    assert len(keys) == 7
    trainable = [name for name, _ in tree_flatten(base.model.trainable_parameters())]
    assert len(trainable) == 4 * 7 * 2
    assert all(name.rsplit(".", 1)[1] in ("lora_a", "lora_b") for name in trainable)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (("q_proj", "v_proj"), ["self_attn.q_proj", "self_attn.v_proj"]),
        (("mlp.up_proj",), ["mlp.up_proj"]),
        ((), None),
    ],
)
def test_targets_by_name_or_path(tiny_base: Path, targets: tuple[str, ...], expected: list[str] | None) -> None:
    keys = lora.attach(load_base(tiny_base).model, Recipe(rank=4, targets=targets))
    assert keys == (expected if expected is not None else keys)
    assert len(keys) == (len(expected) if expected else 7)


def test_a_target_that_matches_nothing_is_named_with_the_known_ones(tiny_base: Path) -> None:
    with pytest.raises(AfsError, match="targets match no linear layer: gate, wq") as caught:
        lora.attach(load_base(tiny_base).model, Recipe(rank=4, targets=("q_proj", "gate", "wq")))
    assert caught.value.where == "targets"
    assert "gate_proj" in caught.value.fix
    assert "down_proj" in caught.value.fix


def test_a_rank_above_the_matrix_is_refused(tiny_base: Path) -> None:
    base = load_base(tiny_base)
    with pytest.raises(AfsError, match="rank 33 is above the smallest target matrix's side, 32"):
        lora.attach(base.model, Recipe(rank=33))
    lora.attach(base.model, Recipe(rank=33, targets=("q_proj",)))  # 64 × 64


def test_more_layers_than_the_model_has_are_refused(tiny_base: Path) -> None:
    with pytest.raises(AfsError, match="the recipe adapts 5 layers, the base has 4") as caught:
        lora.attach(load_base(tiny_base).model, Recipe(rank=4, layers=5))
    assert caught.value.fix == "--set layers=4"


# The schedule


def rates(total: int, **settings: Any) -> list[float]:
    recipe = Recipe(learning_rate=1e-3, **settings)
    return [learning_rate(recipe, step, total) for step in range(1, total + 1)]


def test_warmup_rises_evenly_to_the_peak() -> None:
    found = rates(100, warmup_fraction=0.1, schedule="cosine")
    assert found[:11] == pytest.approx([1e-3 * step / 11 for step in range(1, 12)])
    assert max(found) == found[10] == pytest.approx(1e-3)


def test_cosine_falls_to_a_tenth_of_the_peak() -> None:
    found = rates(101, warmup_fraction=0, schedule="cosine")
    assert (found[0], found[-1]) == pytest.approx((1e-3, 1e-4))
    assert found[50] == pytest.approx((1e-3 + 1e-4) / 2), "half way down in the middle"
    assert found[25] == pytest.approx(1e-4 + 9e-4 * (1 + math.cos(math.pi / 4)) / 2)
    assert found == sorted(found, reverse=True)


def test_linear_falls_evenly_and_constant_stays() -> None:
    falling = rates(101, warmup_fraction=0, schedule="linear")
    assert np.diff(falling) == pytest.approx(np.full(100, -9e-6))
    assert falling[-1] == pytest.approx(1e-4)
    assert rates(20, warmup_fraction=0, schedule="constant") == [1e-3] * 20


@pytest.mark.parametrize("total", [1, 2, 3, 7])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup", [0, 0.1, 0.5, 0.99])
def test_no_step_of_a_short_training_is_without_a_rate(total: int, schedule: str, warmup: float) -> None:
    assert all(0 < rate <= 1e-3 for rate in rates(total, schedule=schedule, warmup_fraction=warmup))


# The files


@pytest.fixture
def written(tmp_path: Path, tiny_base: Path, outcome: Outcome) -> Path:
    lora.write(tmp_path / "run", outcome.base.model, outcome.recipe, outcome.keys, BASE_FACTS, tiny_base, "din")
    return tmp_path / "run"


def test_mlx_lm_loads_what_is_written_and_gives_the_same_logits(
    tiny_base: Path, outcome: Outcome, written: Path
) -> None:
    tokens = mx.array(outcome.valid.rows[0].tokens[None])
    model, _ = load(str(tiny_base), adapter_path=str(written))
    model.eval()
    bare, _ = load(str(tiny_base))
    assert mx.array_equal(model(tokens), outcome.base.model(tokens))
    assert not mx.allclose(model(tokens), bare(tokens), atol=0.1)


def test_scale_is_alpha_over_rank(tiny_base: Path, tmp_path: Path) -> None:
    recipe = Recipe(rank=6, alpha=15, dropout=0.25, layers=2, targets=("q_proj", "down_proj"))
    base = load_base(tiny_base)
    keys = lora.attach(base.model, recipe)
    lora.write(tmp_path / "run", base.model, recipe, keys, BASE_FACTS, tiny_base, "din")
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    parameters = {"rank": 6, "scale": 2.5, "dropout": 0.25, "keys": ["mlp.down_proj", "self_attn.q_proj"]}
    assert config["lora_parameters"] == parameters
    assert (config["num_layers"], config["fine_tune_type"]) == (2, "lora")
    assert config["afs"]["alpha"] == 15
    assert config["afs"]["base"]["sha256"] == BASE_FACTS["weights_sha256"]
    assert base.model.layers[-1].self_attn.q_proj.scale == 2.5
