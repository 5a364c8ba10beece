"""The planner's arithmetic on machines made up for it: known coefficients are found again, proposals really help."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from afs_mlx.core.errors import AfsError, ExitCode
from afs_mlx.core.memory import Memory
from afs_mlx.engine.training.compute.attention import STORED_CELLS, _blocks
from afs_mlx.engine.training.planning import (
    BatchShape,
    FrozenPass,
    Job,
    Measured,
    ModelShape,
    Probe,
    Room,
    Shapes,
    calibrate,
    forecast,
    plan,
    probe_batches,
)
from afs_mlx.engine.training.planning.cells import Cells
from afs_mlx.engine.training.planning.costs import held, work
from afs_mlx.engine.training.planning.fitting import fitted
from afs_mlx.engine.training.planning.forecast import _validations
from afs_mlx.engine.training.planning.proposals import changed
from afs_mlx.engine.training.planning.shapes import Columns
from afs_mlx.schema.recipe import Recipe

GB = 10**9
SMOLLM2 = ModelShape(
    blocks=30,
    width=576,
    heads=9,
    kv_heads=3,
    head_width=64,
    feed_forward=1536,
    vocabulary=49152,
    activation_bytes=4,
    weight_bytes=538_000_000,
    weight_bits=32,
    target_sides=2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536),
)
# A machine: seconds per counted operation, and bytes per counted byte, of each part. Far from the priors.
SECONDS = {"fixed": 3e-11, "blocks": 1.3e-11, "attention": 4e-11, "head": 2.2e-11}
BYTES = {"gradients": 1.4, "activations": 0.8, "attention": 1.3, "head": 0.6}

SMALL = BatchShape(tokens=60, rows=1, longest=60, supervised=12)
SHORT_ROWS = BatchShape(tokens=2000, rows=40, longest=50, supervised=300)
LONG_ROWS = BatchShape(tokens=2048, rows=4, longest=512, supervised=200)
ANSWERS = BatchShape(tokens=1000, rows=10, longest=100, supervised=900)
FOUR = (SMALL, SHORT_ROWS, LONG_ROWS, ANSWERS)
FROZEN = BatchShape(tokens=600, rows=6, longest=100, supervised=0)


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate({"epochs": 2, "layers": 8, "samples": 0, "batch_tokens": 2048, **changes})


def cells(batch: BatchShape, asked: Recipe) -> Cells:
    return Cells.of(Columns.of([batch], asked), asked)


def true_costs(
    batch: BatchShape, asked: Recipe, *, model: ModelShape = SMOLLM2, training: bool = True
) -> tuple[float, float]:
    """(seconds, bytes) of a batch on the made-up machine."""
    asked = model.applied(asked)
    columns = Columns.of([batch], asked)
    seconds = sum(SECONDS[k] * v[0] for k, v in work(columns, model, asked, training=training).items())
    size = sum(BYTES[k] * v[0] for k, v in held(columns, model, asked, training=training).items())
    return float(seconds), float(size)


def measured(
    batches: Sequence[BatchShape], asked: Recipe, noise: Callable[[], float] = lambda: 1.0
) -> tuple[Measured, ...]:
    costs = [true_costs(batch, asked) for batch in batches]
    return tuple(
        Measured(batch, seconds * noise(), round(size * noise()))
        for batch, (seconds, size) in zip(batches, costs, strict=True)
    )


def probe(asked: Recipe, batches: Sequence[BatchShape] = FOUR, **changes: Any) -> Probe:
    return replace(Probe(asked, 600_000_000, measured(batches, asked)), **changes)


def shapes_for(asked: Recipe) -> Shapes:
    """400 rows of 100 and 40 of 500 tokens, as many to a batch as fit."""
    epoch = []
    for rows, length in ((400, 100), (40, 500)):
        size = max(1, asked.batch_tokens // length)
        for start in range(0, rows, size):
            count = min(size, rows - start)
            epoch.append(BatchShape(count * length, count, length, count * length // 5))
    return Shapes((tuple(epoch),) * asked.epochs, tuple(epoch[::10]), 60_000, (FROZEN,) * 100, (20, 30))


def job(asked: Recipe, available_bytes: int, swap_bytes: int = 0, model: ModelShape = SMOLLM2, **changes: Any) -> Job:
    return Job(model, probe(asked, **changes), Room(available_bytes, swap_bytes), shapes_for)


# --- counting


def test_work_of_a_block_is_that_of_its_matrices() -> None:
    asked = recipe(layers=1, rank=1, speed={"lean": False})
    model = replace(SMOLLM2, target_sides=0)
    parts = work(Columns.of([SMALL], asked), model, asked, training=False)
    linear = 576 * (576 + 192 + 192) + 576 * 576 + 3 * 576 * 1536
    assert parts["blocks"][0] == 2 * 60 * linear
    # The loss is made together with its gradient, also where the gradient is not asked for.
    assert parts["head"][0] == 4 * 12 * 576 * 49152


def test_the_gradient_costs_twice_and_checkpointing_three_times_a_forward_pass() -> None:
    model = replace(SMOLLM2, target_sides=0)

    def blocks(*, training: bool, **changes: Any) -> float:
        asked = recipe(**changes)
        return float(work(Columns.of([SHORT_ROWS], asked), model, asked, training=training)["blocks"][0])

    forward = blocks(training=False)
    assert blocks(training=True) == pytest.approx(2 * forward)
    assert blocks(training=True, grad_checkpoint=True) == pytest.approx(3 * forward)


def test_padding_counts_in_attention_alone_unless_the_stock_model_is_called() -> None:
    ragged = BatchShape(tokens=300, rows=4, longest=200, supervised=40)
    even = BatchShape(tokens=800, rows=4, longest=200, supervised=40)
    lean, stock = recipe(), recipe(speed={"lean": False})
    assert Columns.of([ragged], lean).tokens[0] == 300
    assert cells(ragged, lean).made[0] == cells(even, lean).made[0] > 300 * 300 / 2
    assert Columns.of([ragged], stock).tokens[0] == Columns.of([even], stock).tokens[0] == 800


def test_shared_tokens_are_looked_at_by_every_row_and_computed_once() -> None:
    shape = BatchShape(tokens=100 + 4 * 50, rows=4, longest=50, supervised=40, shared=100)
    plain = recipe(speed={"fast_exp": False})
    assert cells(shape, plain).made[0] == 4 * 50 * 150 + 100 * 100
    assert cells(shape, recipe(speed={"lean": False, "fast_exp": False})).made[0] == 4 * 150 * 150


@pytest.mark.parametrize("queries", [1, 64, 127, 128, 200, 500, 512, 513, 2048])
@pytest.mark.parametrize("shared", [0, 70])
def test_cells_are_those_of_the_blocks_that_attention_makes(queries: int, shared: int) -> None:
    blocks = _blocks(queries, queries + shared)
    own = sum((stop - start) * seen for start, stop, seen in blocks)
    alone = sum((stop - start) * seen for start, stop, seen in _blocks(shared, shared)) if shared else 0
    shape = BatchShape(3 * queries + shared, 3, queries, 10, shared)
    found = cells(shape, recipe())
    assert found.made[0] == 3 * own + alone
    assert found.masks[0] == own + alone
    stored = queries * (queries + shared) <= STORED_CELLS
    assert found.kept[0] == (3 * own if stored else 0) + alone
    assert found.kept[0] + found.again[0] == found.made[0]
    most = max((stop - start) * (queries + shared) for start, stop, _ in blocks)
    assert found.largest[0] == max(3 * most, *((stop - start) * shared for start, stop, _ in _blocks(shared, shared)))


def test_long_rows_keep_no_probabilities() -> None:
    long, plain = recipe(layers=-1), recipe(layers=-1, speed={"fast_exp": False})
    shape = BatchShape(2048, 1, 2048, 200)
    ours, theirs = (held(Columns.of([shape], r), SMOLLM2, r, training=True)["attention"][0] for r in (long, plain))
    assert ours < theirs / 10


def test_each_switch_that_saves_memory_does_so_in_the_count() -> None:
    def total(**changes: Any) -> float:
        asked = recipe(layers=-1, **changes)
        return float(sum(v[0] for v in held(Columns.of([LONG_ROWS], asked), SMOLLM2, asked, training=True).values()))

    assert total(grad_checkpoint=True) < 0.4 * total()
    assert total(speed={"head_chunk": 16}) < total(speed={"head_chunk": 0}) < total(speed={"supervised_head": False})
    assert total(accumulation=4) > total()
    assert total(speed={"lean": False}) > total()


# --- fitting


def test_factors_are_found_exactly_where_everything_is_told() -> None:
    parts = [{"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0}, {"a": 1.0, "b": 1.0}]
    found = fitted(parts, [2.0, 0.5, 2.5], 0.7)
    assert found == pytest.approx({"a": 2.0, "b": 0.5}, rel=0.01)


def test_what_nothing_tells_stays_as_counted() -> None:
    assert fitted([{"a": 1.0, "b": 0.0}], [3.0], 0.7)["b"] == pytest.approx(1.0)
    assert fitted([], [], 0.7) == {}


def test_no_factor_is_negative() -> None:
    found = fitted([{"a": 1.0, "b": 5.0}, {"a": 1.0, "b": 0.1}], [1.0, 2.0], 0.7)  # more of b took less
    assert found["b"] == 0
    assert found["a"] > 0


def test_the_machines_coefficients_are_recovered() -> None:
    few = BatchShape(tokens=5, rows=1, longest=5, supervised=1)  # else reading the weights is too little to be told
    assert calibrate(SMOLLM2, probe(recipe(), (*FOUR, few))).seconds == pytest.approx(SECONDS, rel=0.15)
    asked = recipe(rank=512, speed={"head_chunk": 0, "fast_exp": False})  # else too small to be told apart
    found = calibrate(SMOLLM2, probe(asked, (*FOUR, BatchShape(8000, 1, 8000, 8000), BatchShape(64, 1, 64, 1))))
    assert found.bytes == pytest.approx(BYTES, rel=0.15)


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"grad_checkpoint": True},
        {"layers": 2},
        {"layers": -1},
        {"batch_tokens": 512, "accumulation": 4},
        {"speed": {"head_chunk": 32}},
        {"speed": {"lean": False}},
    ],
)
def test_settings_that_were_not_probed_are_foreseen_by_the_same_coefficients(other: dict[str, Any]) -> None:
    asked, different = recipe(), recipe(**other)
    here = job(asked, 100 * GB)
    shapes = shapes_for(different)
    found = forecast(here, different, calibrate(SMOLLM2, here.probe))
    costs = [true_costs(batch, different) for batch in shapes.every_train]
    parts = ("fixed", "blocks", "attention", "head")
    assert sum(found.time_parts[part] for part in parts) == pytest.approx(sum(c[0] for c in costs), rel=0.1)
    above = found.peak_bytes - found.memory_parts["resident"] - found.memory_parts["kept outputs"]
    assert above == pytest.approx(max(c[1] for c in costs), rel=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_three_noisy_steps_are_enough_for_the_goal(seed: int) -> None:
    """Measurements 3 % off: within 20 % of the time and 15 % of the peak."""
    asked = recipe()
    generator = np.random.default_rng(seed)
    every = shapes_for(asked).every_train
    chosen = [every[i] for i in probe_batches(every, SMOLLM2, asked, 1e12)]
    steps = measured(chosen, asked, lambda: float(np.exp(generator.normal(0, 0.03))))
    here = Job(SMOLLM2, Probe(asked, 600_000_000, steps), Room(100 * GB, 0), shapes_for)
    found = forecast(here, asked, calibrate(SMOLLM2, here.probe))
    costs = [true_costs(batch, asked) for batch in every]
    assert sum(found.time_parts[part] for part in SECONDS) == pytest.approx(sum(c[0] for c in costs), rel=0.2)
    above = found.peak_bytes - found.memory_parts["resident"] - found.memory_parts["kept outputs"]
    assert above == pytest.approx(max(c[1] for c in costs), rel=0.15)


def test_a_probe_that_measured_nothing_is_an_error() -> None:
    with pytest.raises(AfsError, match="the probe measured nothing"):
        calibrate(SMOLLM2, Probe(recipe(), 0, ()))
    with pytest.raises(AfsError, match="the probe measured nothing"):
        calibrate(SMOLLM2, Probe(recipe(), 0, (Measured(SMALL, 0.0, 1),)))


def test_without_measured_bytes_the_count_itself_is_taken() -> None:
    steps = tuple(replace(step, extra_bytes=0) for step in measured(FOUR, recipe()))
    assert calibrate(SMOLLM2, Probe(recipe(), 0, steps)).bytes == {}


# --- the whole training


def test_every_part_of_a_training_is_in_the_sum() -> None:
    asked = recipe(samples=2, sample_tokens=50, validations_per_epoch=3, accumulation=2, checkpoint_steps=10)
    here = job(
        asked,
        100 * GB,
        frozen=FrozenPass((FROZEN,), 0.5),
        prompt_s=0.2,
        sample_token_s=0.01,
        update_s=0.002,
        checkpoint_s=0.3,
    )
    found = forecast(here, asked, calibrate(SMOLLM2, here.probe))
    batches = len(shapes_for(asked).train[0])
    updates = 2 * -(-batches // 2)
    assert found.time_parts["frozen blocks"] == pytest.approx(50)  # a hundred groups, each in half a second
    # Before, and three times in two epochs: the base answers up to the limit, what was trained as the row does.
    assert found.time_parts["samples"] == pytest.approx(7 * 2 * 0.2 + (2 * 50 + 6 * (20 + 30)) * 0.01)
    assert found.time_parts["updates"] == pytest.approx(updates * 0.002)
    assert found.time_parts["checkpoints"] == pytest.approx((1 + updates // 10) * 0.3)
    forward = sum(true_costs(batch, asked, training=False)[0] for batch in shapes_for(asked).valid)
    assert found.time_parts["validation"] == pytest.approx(7 * forward, rel=0.1)
    assert found.time_s == pytest.approx(sum(found.time_parts.values()))
    assert found.memory_parts["kept outputs"] == 60_000 * 576 * 4
    assert found.peak_bytes == pytest.approx(sum(found.memory_parts.values()), abs=10)
    comes_and_goes = found.peak_bytes - found.memory_parts["resident"]
    assert found.needed_bytes == pytest.approx(
        found.peak_bytes + here.probe.process_bytes + 0.05 * comes_and_goes, abs=2
    )


def test_outputs_beyond_memory_go_to_disk_and_beyond_that_are_computed_again() -> None:
    asked = recipe(epochs=3)
    here = job(asked, 100 * GB, frozen=FrozenPass((FROZEN,), 0.5))
    calibration = calibrate(SMOLLM2, here.probe)
    every = 60_000 * 2304 / 1e9

    def with_room(memory: float, disk: float) -> tuple[float, float, float]:
        found = forecast(here, recipe(epochs=3, speed={"memory_gb": memory, "disk_gb": disk}), calibration)
        return found.memory_parts["kept outputs"] / 1e9, found.disk_bytes / 1e9, found.time_parts["frozen blocks"]

    shapes = shapes_for(asked)
    valid = sum(shape.tokens for shape in shapes.valid)
    passes = (3 * sum(shape.tokens for shape in shapes.train[0]) + 4 * valid) / 60_000
    assert with_room(2, 16) == pytest.approx((every, 0, 50))
    assert with_room(every / 2, 16) == pytest.approx((0, every, 50))
    assert with_room(every / 4, every / 2) == pytest.approx((0, every / 2, 25 + 25 * passes))
    assert with_room(every / 4, every / 4) == pytest.approx((every / 4, 0, 12.5 + 37.5 * passes))


def test_nothing_is_kept_where_every_block_is_trained() -> None:
    asked = recipe(layers=-1)
    found = forecast(job(asked, 100 * GB), asked, calibrate(SMOLLM2, probe(asked)))
    assert found.memory_parts["kept outputs"] == 0
    assert found.time_parts["frozen blocks"] == 0


def test_more_adapter_takes_more_of_what_stays() -> None:
    asked = recipe()
    here, calibration = job(asked, 100 * GB), calibrate(SMOLLM2, probe(asked))
    one, two = (forecast(here, recipe(rank=rank), calibration).memory_parts["resident"] for rank in (8, 16))
    assert two - one == 4 * 7 * 8 * 8 * SMOLLM2.target_sides  # adapter, best and last good weights, 2 × 2 states


def test_a_large_adapter_is_at_its_peak_in_the_update() -> None:
    small, large = recipe(rank=8), recipe(rank=1024)
    tiny = Shapes(((SMALL,),) * 2, (), 0)
    parts = [
        forecast(job(asked, 100 * GB), asked, calibrate(SMOLLM2, probe(asked)), tiny).memory_parts
        for asked in (small, large)
    ]
    assert "activations" in parts[0]
    assert parts[1]["gradients"] == 4 * 5 * SMOLLM2.trained_parameters(large)


@pytest.mark.parametrize(("steps", "asked", "count"), [(10, 1, 1), (10, 3, 3), (10, 4, 4), (5, 4, 3), (2, 100, 2)])
def test_validations_are_counted_as_the_trainer_places_them(steps: int, asked: int, count: int) -> None:
    every = max(1, -(-steps // asked))
    assert sum(index % every == 0 or index == steps for index in range(1, steps + 1)) == count
    assert _validations(steps, recipe(validations_per_epoch=asked)) == count


# --- verdict and proposals


def test_room_is_what_the_system_and_metal_give(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(16 * GB, 9 * GB, 2 * GB, GB // 2, 0)
    monkeypatch.setattr("platform.system", lambda: "Linux")
    assert Room.here(memory) == Room(9 * GB, 3 * GB // 2)
    assert Room.here(replace(memory, available_bytes=None, swap_total_bytes=None)) == Room(16 * GB, 0)
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    assert Room.here(memory, gpu_bytes=8 * GB) == Room(9 * GB, 7 * GB, 8 * GB)
    assert Room.here(memory, gpu_bytes=8 * GB).fitting_bytes == 8 * GB


def test_the_verdict_follows_the_room() -> None:
    asked = recipe()
    needed = plan(job(asked, 100 * GB), asked).needed_bytes
    verdicts = [
        plan(job(asked, round(needed * share), swap), asked).verdict
        for share, swap in ((2, 0), (1.05, 0), (0.8, needed), (0.8, 0))
    ]
    assert verdicts == ["fits", "tight", "swaps", "impossible"]
    assert [plan(job(asked, round(needed * share)), asked).fits for share in (2, 1.05, 0.8)] == [True, True, False]


def test_what_fits_is_proposed_nothing() -> None:
    asked = recipe()
    assert plan(job(asked, 100 * GB), asked).proposals == ()


def test_checkpointing_is_proposed_away_where_there_is_room() -> None:
    asked = recipe(grad_checkpoint=True)
    found = plan(job(asked, 100 * GB), asked)
    assert [p.changes for p in found.proposals] == [{"grad_checkpoint": False}]
    assert found.proposals[0].time_s < found.time_s
    assert not found.proposals[0].alters_learning


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5])
def test_proposals_fit_and_say_what_a_forecast_of_them_says(share: float) -> None:
    asked = recipe(layers=-1)
    needed = plan(job(asked, 100 * GB), asked).needed_bytes
    here = job(asked, round(needed * share))
    found = plan(here, asked)
    assert not found.fits
    assert found.proposals
    calibration = calibrate(SMOLLM2, here.probe)
    for proposal in found.proposals:
        again = forecast(here, changed(asked, proposal.changes), calibration)
        assert (again.peak_bytes, again.time_s, again.verdict) == (
            proposal.peak_bytes,
            proposal.time_s,
            proposal.verdict,
        )
        assert again.fits
        assert again.peak_bytes < found.peak_bytes
    order = [(p.alters_learning, p.verdict != "fits", p.time_s) for p in found.proposals]
    assert all(one <= two for one, two in pairwise(order))


def test_a_proposal_holds_no_change_that_it_can_do_without() -> None:
    asked = recipe(layers=-1)
    needed = plan(job(asked, 100 * GB), asked).needed_bytes
    here = job(asked, round(needed * 0.7))
    calibration = calibrate(SMOLLM2, here.probe)
    for proposal in plan(here, asked).proposals:
        for key in proposal.changes:
            if key == "accumulation":  # belongs to batch_tokens
                continue
            rest = {
                k: v for k, v in proposal.changes.items() if k != key and (key != "batch_tokens" or k != "accumulation")
            }
            if rest:
                assert forecast(here, changed(asked, rest), calibration).verdict != proposal.verdict


def test_a_smaller_batch_keeps_the_tokens_of_a_step() -> None:
    asked = recipe(layers=-1, accumulation=3, grad_checkpoint=True)
    needed = plan(job(asked, 100 * GB), asked).needed_bytes
    found = [p for p in plan(job(asked, round(needed * 0.85)), asked).proposals if "batch_tokens" in p.changes]
    assert found
    for proposal in found:
        size, count = proposal.changes["batch_tokens"], proposal.changes["accumulation"]
        assert isinstance(size, int)
        assert isinstance(count, int)
        assert size * count == 3 * 2048
        assert size >= 500  # the longest row


def test_a_quantised_base_is_proposed_where_it_helps() -> None:
    model = replace(SMOLLM2, weight_bytes=6 * GB, weight_bits=16, activation_bytes=2, smaller_base="smol-4bit")
    asked = recipe()
    found = plan(job(asked, 3 * GB, model=model, resident_bytes=6 * GB), asked)
    assert found.proposals
    assert all(p.changes["base"] == "smol-4bit" and p.alters_learning for p in found.proposals)
    assert "--base smol-4bit" in found.proposals[0].settings
    on_cpu = replace(model, smaller_base="")
    assert plan(job(asked, 3 * GB, model=on_cpu, resident_bytes=6 * GB), asked).proposals == ()


def test_switches_that_do_not_apply_are_not_counted() -> None:
    unknown = replace(SMOLLM2, lean=False)
    asked = recipe()
    found = forecast(job(asked, 100 * GB, model=unknown), asked, calibrate(unknown, probe(asked)))
    assert found.memory_parts["kept outputs"] == 0
    assert found.time_parts["frozen blocks"] == 0
    assert not unknown.applied(asked).speed.fast_exp
    assert SMOLLM2.applied(asked) == asked


def test_a_refusal_names_the_sizes_and_what_would_fit() -> None:
    asked = recipe(layers=-1)
    needed = plan(job(asked, 100 * GB), asked).needed_bytes
    found = plan(job(asked, round(needed * 0.7)), asked)
    error = found.refuse()
    assert error.code == ExitCode.REFUSED
    assert f"needs about {needed / 1e9:.1f} GB" in error.what
    assert "--set " in error.fix
    assert found.proposals[0].settings in error.fix
    assert "--force" in error.fix


def test_where_nothing_fits_the_refusal_says_so() -> None:
    asked = recipe()
    found = plan(job(asked, GB // 2), asked)
    assert found.verdict == "impossible"
    assert found.proposals == ()
    assert "nothing in the recipe brings it down far enough" in found.refuse().fix


def test_settings_are_written_as_they_are_typed() -> None:
    asked = recipe(layers=-1)
    needed = plan(job(asked, 100 * GB), asked).needed_bytes
    for proposal in plan(job(asked, round(needed * 0.5)), asked).proposals:
        for key, value in proposal.changes.items():
            assert f"--set {key}={str(value).lower()}" in proposal.settings


# --- choosing what to probe


def test_probed_batches_are_far_apart_and_start_with_the_cheapest() -> None:
    batches = [SHORT_ROWS, *[BatchShape(2000, 20, 100, 400)] * 50, LONG_ROWS, ANSWERS, SMALL]
    chosen = [batches[i] for i in probe_batches(batches, SMOLLM2, recipe(), 1e12, count=4)]
    assert chosen[0] == SMALL
    assert LONG_ROWS in chosen
    assert len(set(chosen)) == 4


def test_a_batch_that_may_not_fit_is_not_probed() -> None:
    asked = recipe()
    batches = [*FOUR, BatchShape(16384, 32, 512, 16000)]
    parts = held(Columns.of(batches, asked), SMOLLM2, asked, training=True)
    limit = float(sum(v[2] for v in parts.values()))
    assert 4 not in probe_batches(batches, SMOLLM2, asked, limit, count=5)
    smallest = probe_batches(batches, SMOLLM2, asked, 0)
    assert [batches[i] for i in smallest] == [SMALL]


def test_equal_batches_are_probed_once() -> None:
    assert len(probe_batches([SMALL] * 5, SMOLLM2, recipe(), 1e12)) == 1
