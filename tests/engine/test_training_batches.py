"""Batches by true length: padding is never learnt, every row is seen once, the same order for the same seed."""

import itertools
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from afs_mlx.engine.bases.loading import load_base
from afs_mlx.engine.training import lora, trainer
from afs_mlx.engine.training.batches import Batch, batch_of, epoch_batches, group_by_length, shared_tokens
from afs_mlx.engine.training.events import Planned, Stepped, TrainingEvent
from afs_mlx.engine.training.rows import Row, TokenisedSet
from afs_mlx.engine.training.windows import training_windows, windows
from afs_mlx.schema.recipe import Recipe

BUDGET = 1024


def row(length: int, seed: int = 0) -> Row:
    """Tokens 1 … 99, so that 0 is padding alone; the last third is learnt."""
    tokens = np.random.default_rng(seed).integers(1, 100, length).astype(np.int32)
    supervised = np.zeros(length, dtype=bool)
    supervised[-max(1, length // 3) :] = True
    return Row(tokens, supervised)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Lengths as chats have them: lognormal."""
    lengths = np.random.default_rng(1).lognormal(4.2, 0.8, 400).astype(int).clip(4, 900)
    return [row(int(length), seed) for seed, length in enumerate(lengths)]


def padded_share(rows: list[Row], groups: list[list[int]]) -> float:
    padded = sum(len(group) * max(len(rows[i].tokens) for i in group) for group in groups)
    return 1 - sum(len(rows[i].tokens) for group in groups for i in group) / padded


def beginning_alike(shared: int, count: int, seed: int) -> list[Row]:
    """Rows with `shared` common tokens, then another one each, and what is learnt scattered behind that."""
    rng = np.random.default_rng(seed)
    start = rng.integers(1, 100, shared)
    found = []
    for number in range(count):
        own = rng.integers(1, 100, rng.integers(2, 30))
        weights = rng.choice([0, 0.5, 1, 2], len(own))
        weights[0], weights[rng.integers(1, len(own))] = 0, 0.25
        own[0] = 200 + number
        found.append(Row(np.concatenate([start, own]).astype(np.int32), np.concatenate([np.zeros(shared), weights])))
    return found


def rows_of(batch: Batch) -> list[np.ndarray]:
    """Each row's tokens, the shared ones before them."""
    ends = batch.shared + np.cumsum(batch.lengths)
    start = batch.tokens[: batch.shared]
    return [np.concatenate([start, batch.tokens[end - n : end]]) for end, n in zip(ends, batch.lengths, strict=True)]


def place_of(batch: Batch, position: int) -> tuple[int, int]:
    """A position of the batch as a row's number in it and a position in that row."""
    assert position >= batch.shared, "what is shared is before all that is learnt"
    row = int(np.searchsorted(np.cumsum(batch.lengths), position - batch.shared, side="right"))
    return row, position - int(batch.lengths[:row].sum())


# Batches


@pytest.mark.parametrize("round_to", [1, 8, 32])
@pytest.mark.parametrize("shared", [0, 1, 7])
def test_what_is_learnt_is_exactly_what_is_supervised_behind_what_stands_before_it(shared: int, round_to: int) -> None:
    for seed in range(20):
        rows = beginning_alike(shared, 5, seed)
        assert shared_tokens(rows) == shared
        numbers = [int(i) for i in np.random.default_rng(seed).permutation(5)[: 1 + seed % 5]]
        batch = batch_of(rows, numbers, shared, round_to)
        assert (batch.rows, batch.shared) == (tuple(numbers), shared)
        lines, learnt = rows_of(batch), Counter[tuple[int, int]]()
        for position, target, weight in zip(batch.positions, batch.targets, batch.weights, strict=True):
            if weight == 0:
                continue
            line, place = place_of(batch, int(position))
            source = rows[numbers[line]]
            assert np.array_equal(lines[line][: place + 1], source.tokens[: place + 1]), "all that it looks back on"
            assert (target, weight) == (source.tokens[place + 1], source.weights[place + 1])
            learnt[line, place + 1] += 1
        expected = {(line, int(i)) for line, n in enumerate(numbers) for i in np.flatnonzero(rows[n].weights)}
        assert learnt == Counter(expected), "each once"
        assert batch.supervised_tokens == len(expected)
        assert batch.weight == pytest.approx(sum(float(rows[n].weights.sum()) for n in numbers))
        assert batch.tokens.dtype == batch.positions.dtype == batch.targets.dtype == np.int32


def test_padding_is_never_learnt_and_every_supervised_token_is(rows: list[Row]) -> None:
    seen = 0
    for group in group_by_length(rows, range(len(rows)), BUDGET):
        batch = batch_of(rows, group, 0, 32)
        assert max(Counter(batch.positions[batch.weights > 0].tolist()).values()) == 1
        assert (batch.tokens[batch.positions[batch.weights > 0]] != 0).all(), "padding"
        seen += batch.supervised_tokens
    assert seen == sum(r.supervised_tokens for r in rows)


def test_rows_stand_one_after_the_other_without_padding_or_what_nobody_looks_at() -> None:
    short, long = row(5, 1), row(9, 2)
    long.weights[-2:] = 0  # nothing looks at what comes after the last learnt token, nor at that token
    batch = batch_of([short, long], [1, 0])
    assert batch.lengths.tolist() == [6, 4]
    assert batch.tokens.tolist() == [*long.tokens[:6].tolist(), *short.tokens[:4].tolist()]


def test_rounded_batches_have_few_shapes(rows: list[Row]) -> None:
    for group in group_by_length(rows, range(len(rows)), BUDGET)[:20]:
        plain, batch = batch_of(rows, group), batch_of(rows, group, 0, 32)
        (width,) = set(batch.lengths.tolist())
        assert width % 32 == 0 <= width - plain.lengths.max() < 32
        assert len(batch.targets) % 32 == 0 <= len(batch.targets) - len(plain.targets) < 32
        assert (batch.weight, batch.supervised_tokens) == (plain.weight, plain.supervised_tokens)
        own = [line[:n] for line, n in zip(rows_of(batch), plain.lengths, strict=True)]
        assert np.array_equal(np.concatenate(own), plain.tokens)
        assert (batch.positions >= 0).all()
        assert (batch.positions < len(batch.tokens)).all()


@pytest.mark.parametrize("numbers", [[0], [1, 0]])
def test_a_first_token_cannot_be_predicted_and_is_not_counted(numbers: list[int]) -> None:
    """Nothing stands before it, also when a mask claims it."""
    rows = [Row(np.arange(1, 5, dtype=np.int32), np.ones(4, dtype=bool)), row(6)]
    batch = batch_of(rows, numbers)
    assert (batch.positions >= 0).all()
    assert batch.targets[-3:].tolist() == [2, 3, 4]
    assert 1 not in batch.targets[-4:].tolist()
    assert batch.supervised_tokens == 3 + (2 if len(numbers) > 1 else 0)


# What rows share


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shared", [0, 1, 2, 13])
def test_what_is_shared_never_reaches_a_learnt_position(shared: int, seed: int) -> None:
    rows = beginning_alike(shared, 6, seed)
    found = shared_tokens(rows)
    assert found == shared
    for row in rows:
        first = int(np.flatnonzero(row.weights)[0])
        assert found <= first - 1, "the position that predicts it is the row's own"
        assert np.array_equal(row.tokens[:found], rows[0].tokens[:found])


def test_rows_that_differ_in_what_is_learnt_alone_share_all_but_the_last_position() -> None:
    tokens = np.arange(1, 11)
    ends = [Row(np.append(tokens, end).astype(np.int32), np.arange(11) >= 10) for end in (50, 60)]
    assert shared_tokens(ends) == 9
    assert batch_of(ends, [0, 1], 9).tokens.tolist() == [*range(1, 10), 10, 10]
    assert batch_of(ends, [0, 1], 9).positions.tolist() == [9, 10]


@pytest.mark.parametrize("first", [1, 2])
def test_an_answer_at_the_start_leaves_nothing_to_share(first: int) -> None:
    tokens = np.arange(1, 11, dtype=np.int32)
    same = [Row(tokens, np.arange(10) >= 5), Row(tokens, np.arange(10) >= first)]
    assert shared_tokens(same) == first - 1
    assert batch_of(same, [0, 1], first - 1).positions.min() >= first - 1


def test_a_row_alone_shares_what_it_does_not_learn_and_a_prefix_of_another_all_of_itself() -> None:
    assert shared_tokens([row(30)]) == 30 - 10 - 1
    short, long = row(6, 1), row(30, 1)
    assert shared_tokens([Row(long.tokens[:6], short.weights), long]) == 3


# Epochs


def test_every_row_is_seen_exactly_once_in_each_epoch(rows: list[Row]) -> None:
    for seed, epoch in itertools.product((0, 1), (1, 2, 3)):
        groups = epoch_batches(rows, BUDGET, seed, epoch)
        assert sorted(i for group in groups for i in group) == list(range(len(rows)))
        assert all(groups)


def test_the_budget_holds_in_every_epoch(rows: list[Row]) -> None:
    for budget, epoch in itertools.product((1, 100, BUDGET, 10**9), (1, 2)):
        for group in epoch_batches(rows, budget, 0, epoch):
            assert len(group) == 1 or max(len(rows[i].tokens) for i in group) * len(group) <= budget


def test_an_epoch_pads_little_and_mixes_neighbours(rows: list[Row]) -> None:
    epochs = [epoch_batches(rows, BUDGET, 0, epoch) for epoch in (1, 2)]
    assert all(padded_share(rows, groups) < 0.1 for groups in epochs)
    pairs = [{frozenset(p) for group in groups for p in itertools.combinations(group, 2)} for groups in epochs]
    assert len(pairs[0] & pairs[1]) < 0.5 * len(pairs[0]), "rows meet others in the next epoch"
    lengths = [max(len(rows[i].tokens) for i in group) for group in epochs[0]]
    rises = np.mean(np.diff(lengths) > 0)
    assert 0.3 < rises < 0.7, "short and long steps are mixed"


def test_an_epoch_depends_on_seed_and_number_alone(rows: list[Row]) -> None:
    """Neither on the epochs before it nor on anybody's draws from the global generators."""
    wanted = {(seed, epoch): epoch_batches(rows, BUDGET, seed, epoch) for seed in (0, 1) for epoch in (1, 2)}
    assert len({json.dumps(groups) for groups in wanted.values()}) == 4
    np.random.seed(7)
    state = np.random.get_state()[1].copy()
    assert epoch_batches(rows, BUDGET, 1, 2) == wanted[1, 2]
    assert np.array_equal(np.random.get_state()[1], state), "and it disturbs no draw of others"


ELSEWHERE = """
import json, sys
import numpy as np
from afs_mlx.engine.training.batches import epoch_batches
from afs_mlx.engine.training.rows import Row

lengths = json.loads(sys.argv[1])
rows = [Row(np.ones(n, dtype=np.int32), np.ones(n)) for n in lengths]
print(json.dumps(epoch_batches(rows, 1024, 4_000_000_000, 3)))
"""


def test_another_process_finds_the_same_epochs(rows: list[Row]) -> None:
    lengths = json.dumps([len(row.tokens) for row in rows])
    command = [sys.executable, "-c", ELSEWHERE, lengths]
    said = [
        subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}).stdout
        for seed in ("1", "2")
    ]
    assert [json.loads(text) for text in said] == [epoch_batches(rows, 1024, 4_000_000_000, 3)] * 2


@pytest.mark.parametrize(("count", "size"), [(7, 3), (6, 3), (1, 4), (5, 1)])
def test_windows_hold_everything_in_order(count: int, size: int) -> None:
    batches = [[i] for i in range(count)]
    found = list(windows(batches, size))
    assert [group for window in found for group in window] == batches
    assert [len(window) for window in found] == [size] * (count // size) + [count % size] * bool(count % size)


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("often", [1, 2, 3, 4, 100])
def test_every_epoch_is_validated_at_its_end_and_as_often_as_asked(
    rows: list[Row], often: int, accumulation: int
) -> None:
    settings = {"epochs": 3, "batch_tokens": BUDGET, "accumulation": accumulation, "validations_per_epoch": often}
    recipe = Recipe.model_validate({**settings, "seed": 4})
    found = training_windows(rows, recipe)
    assert [window.epoch for window in found] == sorted(window.epoch for window in found)
    for epoch in (1, 2, 3):
        steps = [window for window in found if window.epoch == epoch]
        assert [group for step in steps for group in step.groups] == epoch_batches(rows, BUDGET, 4, epoch)
        assert all(1 <= len(step.groups) <= accumulation for step in steps)
        assert steps[-1].validates
        validations = [number for number, step in enumerate(steps, start=1) if step.validates]
        assert len(validations) == -(-len(steps) // -(-len(steps) // often))
        assert len(validations) <= often
        gaps = set(np.diff([0, *validations[:-1]]).tolist())
        assert len(gaps) <= 1, "evenly, but for the last"


# Groups


def test_the_budget_holds_padding_included(rows: list[Row]) -> None:
    for group in group_by_length(rows, range(len(rows)), BUDGET):
        longest = max(len(rows[i].tokens) for i in group)
        assert len(group) == 1 or longest * len(group) <= BUDGET


def test_a_row_beyond_the_budget_stands_alone() -> None:
    rows = [row(50), row(10), row(70)]
    assert group_by_length(rows, range(3), 20) == [[1], [0], [2]]
    assert group_by_length([], [], 20) == []


def test_batches_are_full(rows: list[Row]) -> None:
    """The next row would not have fitted; else one row a batch would pass every test above."""
    groups = group_by_length(rows, range(len(rows)), BUDGET)
    for group, following in itertools.pairwise(groups):
        assert (len(group) + 1) * len(rows[following[0]].tokens) > BUDGET


def test_padding_is_far_below_that_of_unsorted_batches(rows: list[Row]) -> None:
    groups = group_by_length(rows, range(len(rows)), BUDGET)
    size = round(len(rows) / len(groups))
    unsorted = [list(range(start, min(start + size, len(rows)))) for start in range(0, len(rows), size)]
    assert padded_share(rows, groups) < 0.05
    assert padded_share(rows, unsorted) > 0.4


def test_the_last_window_keeps_what_is_left(tiny_base: Path) -> None:
    """Four micro-batches at three a step are two steps; the second sees the fourth."""
    recipe = Recipe(
        rank=2, alpha=4, samples=0, targets=("q_proj",), layers=1, batch_tokens=10, accumulation=3, epochs=1
    )
    model = load_base(tiny_base).model
    lora.attach(model, recipe)
    rows = TokenisedSet([row(10, seed) for seed in range(4)], dropped=0)
    events: list[TrainingEvent] = []
    trained = trainer.train(model, recipe, rows, rows, events.append, lambda: False)
    steps = [event.supervised_tokens for event in events if isinstance(event, Stepped)]
    assert steps == [9, 3]
    assert trained.supervised_tokens_seen == rows.supervised_tokens
    assert [event.total_steps for event in events if isinstance(event, Planned)] == [2]
