"""Shapes are those that the trainer runs, the probe leaves no trace, and what cannot fit is refused at once."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model, quantize_model, save_config, save_model

from afs_mlx.core.errors import ExitCode, RefusedError
from afs_mlx.core.memory import Memory
from afs_mlx.engine.bases.loading import LoadedBase, load_base
from afs_mlx.engine.training import lora, trainer
from afs_mlx.engine.training.compute.losses import Losses
from afs_mlx.engine.training.dropout import KeyedDropout
from afs_mlx.engine.training.events import Planned, Prepared, TrainingEvent, Validated
from afs_mlx.engine.training.planning import Job, Probe, Room, Shapes, planned
from afs_mlx.engine.training.planning import checking as planning
from afs_mlx.engine.training.planning import probe as probing
from afs_mlx.engine.training.planning.probe import Probing, resident_bytes
from afs_mlx.engine.training.planning.reading import RowShapes, _answer_tokens, model_shape
from afs_mlx.engine.training.rows import Row, tokenise
from afs_mlx.schema.base import Base
from afs_mlx.schema.example import Example
from afs_mlx.schema.message import Message
from afs_mlx.schema.recipe import Recipe

GB = 10**9
ROOMY = Room(100 * GB, 0)
QUICK: dict[str, Any] = {"rank": 4, "alpha": 8, "layers": 2, "epochs": 3, "batch_tokens": 160, "sample_tokens": 4}


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate({**QUICK, **changes})


def ignore(event: Probing | TrainingEvent) -> None:
    """Nobody watches."""


class Ready:
    """A base with adapters, and rows of several lengths that begin alike."""

    def __init__(self, folder: Path, change: Callable[[LoadedBase], None] = lambda base: None, **changes: Any) -> None:
        self.recipe = recipe(**changes)
        self.base = load_base(folder)
        change(self.base)
        self.model = self.base.model
        lora.attach(self.model, self.recipe)
        examples = [self._pair(number) for number in range(12)]
        self.train, self.valid = (
            tokenise(each, self.base.tokenizer, self.recipe, "rows") for each in (examples[:9], examples[9:])
        )
        self.rows = [*self.train.rows, *self.valid.rows]
        self.shape = model_shape(self.model)
        self.shapes = RowShapes(self.model, self.shape, self.train.rows, self.valid.rows)

    def probe(self, limit_bytes: float = 1e12, on_event: Callable[[Probing], None] = ignore) -> Probe:
        return probing.probe(self.model, self.shape, self.recipe, self.shapes, limit_bytes, on_event)

    def foresee(self, room: Room = ROOMY) -> planning.Foresight:
        return planning.foresee(self.model, self.recipe, self.train.rows, self.valid.rows, room, ignore)

    def check(self, room: Room, **options: Any) -> str:
        return planning.check_memory(self.model, self.recipe, self.train.rows, self.valid.rows, room, **options)

    @property
    def parameters(self) -> dict[str, mx.array]:
        return dict(tree_flatten(self.model.parameters()))

    @staticmethod
    def _pair(number: int) -> Example:
        question = "Clear the address, please: " + " and ".join(f"${i:02x}" for i in range(number + 1))
        answer = "\n".join(f"stz ${i:02x}" for i in range(number % 4 + 1))
        return Example(messages=(Message(role="user", content=question), Message(role="assistant", content=answer)))


def total_bytes(model: nn.Module) -> int:
    arrays: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    return sum(array.nbytes for array in arrays.values())


# --- shapes


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layers": -1, "batch_tokens": 90},
        {"speed": {"shared_prompt": False}},
        {"speed": {"compile": "on"}},
        {"speed": {"lean": False}},
    ],
)
def test_batch_shapes_are_those_of_the_batches_that_are_run(tiny_base: Path, changes: dict[str, Any]) -> None:
    ready = Ready(tiny_base, **changes)
    losses = Losses(ready.model, ready.recipe, ready.rows, None, "")
    assert ready.shapes.shared(ready.recipe) == losses.ways.shared
    groups = [group for epoch in ready.shapes.epochs(ready.recipe) for group in epoch]
    assert len(groups) > 3
    for group in groups:
        batch, shape = losses.batch(group), ready.shapes.batch(group, ready.recipe)
        assert (shape.tokens, shape.rows, shape.longest, shape.supervised, shape.shared) == (
            len(batch.tokens),
            len(batch.lengths),
            int(batch.lengths.max()),
            len(batch.targets),
            batch.shared,
        )


def test_steps_validations_and_checkpoints_are_counted_as_the_trainer_does_them(tiny_base: Path) -> None:
    ready = Ready(tiny_base, accumulation=2, validations_per_epoch=2, samples=0)
    events: list[TrainingEvent] = []
    trainer.train(ready.model, ready.recipe, ready.train, ready.valid, events.append, lambda: False)
    planned = next(event for event in events if isinstance(event, Planned))
    found = ready.foresee()
    assert found.optimizer_steps == planned.total_steps
    assert validations_foreseen(ready, found.probe) == sum(isinstance(event, Validated) for event in events)


def validations_foreseen(ready: Ready, probe: Probe) -> float:
    """At a second for each question that is answered, the number of validations."""
    asked = ready.recipe.model_copy(update={"samples": 1})
    job = Job(ready.shape, replace(probe, prompt_s=1.0, sample_token_s=0.0), ROOMY, ready.shapes)
    return planned(job, asked, planning.UNCALIBRATED).time_parts["samples"]


def test_kept_outputs_are_as_large_as_foreseen(tiny_base: Path) -> None:
    ready = Ready(tiny_base)
    events: list[Prepared] = []
    Losses(ready.model, ready.recipe, ready.rows, None, "").prepare(events.append)
    assert ready.foresee().forecast.memory_parts["kept outputs"] == events[-1].kept_bytes


def test_the_models_shape_is_counted_from_its_matrices(tiny_base: Path) -> None:
    ready = Ready(tiny_base, targets=("q_proj", "down_proj"))
    plain = load_base(tiny_base).model
    linears = [m for _, m in plain.layers[0].named_modules() if isinstance(m, nn.Linear)]
    assert ready.shape.block_parameters == sum(linear.weight.size for linear in linears)
    assert ready.shape.weight_bytes == total_bytes(plain)
    assert ready.shape.weight_bits == 32
    adapter = sum(array.size for array in lora.adapter_weights(ready.model).values())
    assert ready.shape.trained_parameters(ready.recipe) == adapter
    assert (ready.shape.lean, ready.shape.plain_head, ready.shape.own_attention) == (True, True, True)


def test_a_quantised_model_has_the_same_shape_and_fewer_bits(tiny_base: Path) -> None:
    packed = Ready(tiny_base, lambda base: nn.quantize(base.model, group_size=32, bits=4)).shape
    plain = Ready(tiny_base).shape
    assert packed.block_parameters == plain.block_parameters
    assert packed.trained_parameters(recipe()) == plain.trained_parameters(recipe())
    assert 4 < packed.weight_bits <= 6  # a scale and a bias for each 32 weights


def test_later_epochs_are_taken_to_be_like_the_first_ones(tiny_base: Path) -> None:
    ready = Ready(tiny_base, epochs=50)
    found: Shapes = ready.shapes(ready.recipe)
    assert len(found.train) == 50
    assert len(set(map(id, found.train))) == 8


# --- the probe


def test_the_probe_measures_gradients_forward_passes_and_the_frozen_blocks(tiny_base: Path) -> None:
    ready = Ready(tiny_base)
    events: list[Probing] = []
    found = ready.probe(on_event=events.append)
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    assert [step.training for step in found.steps] == [True, False] * len(events)
    assert all(step.seconds > 0 and step.extra_bytes > 0 for step in found.steps)
    for training, forward in zip(found.steps[::2], found.steps[1::2], strict=True):
        assert training.batch == forward.batch
        assert training.extra_bytes > forward.extra_bytes
    assert found.frozen is not None
    assert found.frozen.seconds > 0
    probed = sum(step.batch.tokens - step.batch.shared for step in found.steps[::2])
    assert sum(group.tokens - group.shared for group in found.frozen.groups) >= probed
    assert min(found.prompt_s, found.sample_token_s, found.update_s) >= 0
    assert min(found.sample_token_s, found.update_s, found.checkpoint_s) > 0


def test_nothing_frozen_is_measured_where_every_block_is_trained(tiny_base: Path) -> None:
    assert Ready(tiny_base, layers=-1).probe().frozen is None


def test_samples_that_are_not_asked_for_are_not_tried(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "generate_step", None)
    assert Ready(tiny_base, samples=0).probe().sample_token_s == 0


@pytest.mark.parametrize(("share", "count"), [(0.0, 1), (1e9, 3)])
def test_the_probe_goes_on_as_long_as_it_is_a_small_share_of_the_training(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch, share: float, count: int
) -> None:
    monkeypatch.setattr(probing, "SHARE", share)
    monkeypatch.setattr(probing, "MOST_S", 1e9)
    events: list[Probing] = []
    Ready(tiny_base).probe(on_event=events.append)
    assert len(events) == count


@pytest.mark.parametrize(
    "changes",
    [
        {"dropout": 0.2},
        {"grad_checkpoint": True, "speed": {"lean": False}},
        {"grad_checkpoint": True, "accumulation": 2},
        {"method": "dora", "optimizer": "lion"},
    ],
)
def test_the_probe_leaves_the_model_and_the_disk_as_they_were(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.setattr(probing, "SHARE", 1e9)
    ready = Ready(tiny_base, **changes)
    block = type(ready.model.layers[0])
    before, call = ready.parameters, block.__call__
    files = sorted(tmp_path.rglob("*"))
    ready.probe()
    after = ready.parameters
    assert list(after) == list(before)
    assert all(mx.array_equal(after[name], before[name]).item() for name in before)
    assert block.__call__ is call
    assert not any(isinstance(module, KeyedDropout) for module in ready.model.modules())
    assert sorted(tmp_path.rglob("*")) == files


@pytest.mark.parametrize("changes", [{"dropout": 0.3}, {"layers": -1, "accumulation": 2}])
def test_a_training_after_the_probe_is_the_training_without_it_bit_for_bit(
    tiny_base: Path, changes: dict[str, Any]
) -> None:
    weights = []
    for probed in (False, True):
        ready = Ready(tiny_base, samples=0, **changes)
        if probed:
            ready.foresee()
        weights.append(
            trainer.train(ready.model, ready.recipe, ready.train, ready.valid, ignore, lambda: False).weights
        )
    assert all(mx.array_equal(array, weights[1][name]).item() for name, array in weights[0].items())


def test_few_rows_do_not_share_more_than_all_do(tiny_base: Path) -> None:
    ready = Ready(tiny_base)
    shared = ready.shapes.shared(ready.recipe)
    assert shared > 0
    alone = Losses(ready.model, ready.recipe, [ready.rows[0]], None, "")
    assert alone.ways.shared > shared
    for number in range(len(ready.rows)):
        telling = probing._telling(ready.rows, [number], shared)
        few = [ready.rows[i] for i in (number, *telling)]
        assert Losses(ready.model, ready.recipe, few, None, "").ways.shared == shared


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "sgd", "muon"])
def test_what_stays_is_what_the_trainer_keeps(tiny_base: Path, optimizer: str) -> None:
    """Base, adapter, best and last good weights, and the optimizer's state of now and of the last checkpoint."""
    ready = Ready(tiny_base, optimizer=optimizer, optimizer_options={"momentum": 0.9} if optimizer == "sgd" else {})
    size, copies = resident_bytes(ready.model, ready.recipe)
    base = sum(array.nbytes for array in ready.parameters.values())
    adapter = sum(array.nbytes for array in lora.adapter_weights(ready.model).values())
    states = {"adamw": 2, "lion": 1, "sgd": 1, "muon": 1}[optimizer]
    assert copies == pytest.approx(3 + 2 * states, abs=0.01)
    assert size == pytest.approx(base + (2 + 2 * states) * adapter, rel=0.001)


# --- before it starts


def test_a_training_that_fits_is_said_nothing_of(tiny_base: Path) -> None:
    assert Ready(tiny_base).check(ROOMY) == ""


@pytest.fixture
def nothing_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python itself takes nothing: beside it a tiny model would not be seen."""
    monkeypatch.setattr(planning, "process_beside_arrays", lambda: 0)


def needed(ready: Ready) -> int:
    """What the cheap check counts."""
    job = Job(ready.shape, planning._counted(ready.model, ready.recipe), ROOMY, ready.shapes)
    return planned(job, ready.recipe, planning.UNCALIBRATED).needed_bytes


@pytest.mark.parametrize(
    ("share", "swap", "said"),
    [(1.1, 0, "it is tight"), (0.8, 10 * GB, "it will swap"), (0.95, 0, "ended for lack of memory")],
)
@pytest.mark.usefixtures("nothing_beside")
def test_what_is_tight_or_swaps_is_a_notice(tiny_base: Path, share: float, swap: int, said: str) -> None:
    ready = Ready(tiny_base)
    text = ready.check(Room(round(share * needed(ready)), swap))
    assert said in text
    assert "the training needs about" in text


@pytest.mark.usefixtures("nothing_beside")
def test_a_refusal_proposes_what_would_fit(tiny_base: Path) -> None:
    ready = Ready(tiny_base, layers=-1, batch_tokens=100_000)
    room = Room(round(0.7 * needed(ready)), 0)
    with pytest.raises(RefusedError) as caught:
        ready.check(room)
    first = caught.value.fix.splitlines()[0]
    changes = dict(word.split("=") for word in first.partition("  (")[0].split() if word != "--set")
    assert changes
    lighter = Ready(tiny_base, **{"layers": -1, "batch_tokens": 100_000, **changes})  # type: ignore[arg-type]
    assert needed(lighter) <= room.available_bytes


@pytest.mark.usefixtures("nothing_beside")
def test_what_does_not_fit_is_timed_by_a_lighter_setting(tiny_base: Path) -> None:
    ready = Ready(tiny_base, layers=-1, batch_tokens=100_000)
    found = ready.foresee(Room(round(0.8 * needed(ready)), 0))
    assert not found.forecast.fits
    assert found.calibrated
    assert found.probe.recipe != ready.recipe
    assert found.forecast.time_s > 0


def test_what_cannot_run_is_refused_unless_forced(tiny_base: Path) -> None:
    ready, room = Ready(tiny_base), Room(1_000_000, 0)
    with pytest.raises(RefusedError, match="the training needs about") as caught:
        ready.check(room)
    assert caught.value.code == ExitCode.REFUSED
    assert "--force" in caught.value.fix
    assert "ended for lack of memory" in ready.check(room, force=True)


def test_where_not_even_the_smallest_batch_fits_nothing_is_run(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "probe", None)
    found = Ready(tiny_base).foresee(Room(1_000_000, 0))
    assert not found.calibrated
    assert found.forecast.verdict == "impossible"


def test_batches_above_the_limit_are_not_probed(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "SHARE", 1e9)
    ready = Ready(tiny_base)
    every = ready.probe().steps[::2]
    sizes = [counted_bytes(ready, [step.batch]) for step in every]
    few = ready.probe(limit_bytes=min(sizes)).steps[::2]
    assert max(sizes) > min(sizes)
    assert all(counted_bytes(ready, [step.batch]) <= min(sizes) for step in few)


def counted_bytes(ready: Ready, batches: Sequence[Any]) -> float:
    return planning._least(batches, ready.shape, ready.recipe)


# --- the base alone


@pytest.fixture(scope="module")
def packed(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base in 4 bits."""
    folder = tmp_path_factory.mktemp("packed")
    for path in tiny_base.iterdir():
        if path.is_file() and not path.name.startswith("model"):
            (folder / path.name).write_bytes(path.read_bytes())
    model, config = quantize_model(*load_model(tiny_base), group_size=64, bits=4)
    save_model(folder, model)
    save_config(config, folder / "config.json")
    return folder


def test_a_bases_size_in_memory_is_told_by_its_files(tiny_base: Path, packed: Path) -> None:
    plain = total_bytes(load_base(tiny_base).model)
    assert planning.loaded_bytes(tiny_base) == plain
    # Scales and biases go when it is dequantised: they count a little too much.
    unpacked = total_bytes(load_base(packed).model)
    assert unpacked <= planning.loaded_bytes(packed) < 1.05 * unpacked


def test_a_base_that_alone_is_too_large_is_refused_before_it_is_loaded(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Memory, "here", lambda: Memory(GB // 10, GB // 100, 0, 0, 0))
    monkeypatch.setattr(planning, "process_bytes", lambda: 0)
    with pytest.raises(RefusedError, match="the base alone takes") as caught:
        planning.room_before(tiny_base)
    assert "--base" in caught.value.fix
    assert planning.room_before(tiny_base, force=True).available_bytes == GB // 100


def test_the_smaller_variant_is_one_of_the_same_lineage() -> None:
    def base(name: str, hub: str, original: str) -> Base:
        return Base(id=name, source="hub", layout="qwen2", parameters=1, license="x", hub=hub, original=original)

    bases = {each.id: each for each in (base("small", "org/small-4bit", "org/small"), base("other", "org/o", "o"))}
    assert planning.smaller_base("org/small", bases) == "small"
    assert planning.smaller_base("small", bases) == ""
    assert planning.smaller_base("o", bases) == ""
    assert planning.smaller_base("/somewhere/else", bases) == ""


def test_an_answer_is_as_long_as_its_first_turn() -> None:
    def tokens(*weights: float) -> int:
        return _answer_tokens(Row(np.arange(len(weights), dtype=np.int32), np.array(weights, dtype=np.float32)))

    assert tokens(0, 0, 1, 1, 0, 1) == 2
    assert tokens(0, 1, 1, 0.5) == 3
