"""Batches by true length: padding is never learnt, every row is seen once, the same order for the same seed."""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from afs_mlx.engine.bases.loading import load_base
from afs_mlx.engine.training import lora, trainer
from afs_mlx.engine.training.batches import batch_of, epoch_order, group_by_length
from afs_mlx.engine.training.events import Planned, Stepped, TrainingEvent
from afs_mlx.engine.training.rows import Row, TokenisedSet
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
    return 1 - sum(len(r.tokens) for r in rows) / padded


def test_padding_is_never_learnt_and_every_supervised_token_is(rows: list[Row]) -> None:
    seen = 0
    for group in group_by_length(rows, BUDGET):
        batch = batch_of([rows[i] for i in group])
        width = batch.inputs.shape[1]
        places = Counter(batch.positions.tolist())
        assert max(places.values()) == 1
        for position, target in zip(batch.positions.tolist(), batch.targets.tolist(), strict=True):
            line, column = divmod(position, width)
            source = rows[group[line]]
            assert batch.inputs[line, column] != 0, "padding"
            assert source.supervised[column + 1]
            assert target == source.tokens[column + 1]
        seen += batch.supervised_tokens
    assert seen == sum(r.supervised_tokens for r in rows)


def test_inputs_are_the_rows_without_their_last_token_padded_on_the_right() -> None:
    short, long = row(5, 1), row(9, 2)
    batch = batch_of([short, long])
    assert batch.inputs.shape == (2, 8)
    assert batch.inputs[0].tolist() == [*short.tokens[:-1].tolist(), 0, 0, 0, 0]
    assert batch.inputs[1].tolist() == long.tokens[:-1].tolist()


def test_a_first_token_cannot_be_predicted_and_is_not_counted() -> None:
    """Nothing stands before it, also when a mask claims it."""
    whole = Row(np.arange(1, 5, dtype=np.int32), np.ones(4, dtype=bool))
    batch = batch_of([whole])
    assert batch.targets.tolist() == [2, 3, 4]


def test_every_row_is_seen_exactly_once_in_each_epoch(rows: list[Row]) -> None:
    groups = group_by_length(rows, BUDGET)
    for epoch in (1, 2, 3):
        seen = [i for group in epoch_order(groups, 0, epoch) for i in groups[group]]
        assert sorted(seen) == list(range(len(rows)))


def test_the_budget_holds_padding_included(rows: list[Row]) -> None:
    for group in group_by_length(rows, BUDGET):
        longest = max(len(rows[i].tokens) for i in group)
        assert len(group) == 1 or longest * len(group) <= BUDGET


def test_a_row_beyond_the_budget_stands_alone() -> None:
    rows = [row(50), row(10), row(70)]
    assert group_by_length(rows, 20) == [[1], [0], [2]]
    assert group_by_length([], 20) == []


def test_batches_are_full(rows: list[Row]) -> None:
    """The next row would not have fitted; else one row a batch would pass every test above."""
    groups = group_by_length(rows, BUDGET)
    for group, following in itertools.pairwise(groups):
        assert (len(group) + 1) * len(rows[following[0]].tokens) > BUDGET


def test_padding_is_far_below_that_of_unsorted_batches(rows: list[Row]) -> None:
    groups = group_by_length(rows, BUDGET)
    size = round(len(rows) / len(groups))
    unsorted = [list(range(start, min(start + size, len(rows)))) for start in range(0, len(rows), size)]
    assert padded_share(rows, groups) < 0.05
    assert padded_share(rows, unsorted) > 0.4


def test_the_order_depends_on_seed_and_epoch_alone(rows: list[Row]) -> None:
    groups = group_by_length(rows, BUDGET)
    orders = {(seed, epoch): epoch_order(groups, seed, epoch) for seed in (0, 1) for epoch in (1, 2)}
    assert epoch_order(groups, 1, 2) == orders[1, 2]
    assert len({tuple(order) for order in orders.values()}) == 4


def test_the_last_window_keeps_what_is_left(tiny_base: Path) -> None:
    """Four micro-batches at three a step are two steps; the second sees the fourth."""
    recipe = Recipe(rank=2, alpha=4, targets=("q_proj",), layers=1, batch_tokens=10, accumulation=3, epochs=1)
    model = load_base(tiny_base).model
    lora.attach(model, recipe)
    rows = TokenisedSet([row(10, seed) for seed in range(4)], dropped=0)
    events: list[TrainingEvent] = []
    trained = trainer.train(model, recipe, rows, rows, events.append, lambda: False)
    steps = [event.supervised_tokens for event in events if isinstance(event, Stepped)]
    assert steps == [9, 3]
    assert trained.supervised_tokens_seen == rows.supervised_tokens
    assert [event.total_steps for event in events if isinstance(event, Planned)] == [2]
