"""Every optimizer step of a training, known before the first: a step's number is the place in the data."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from afs_mlx.engine.training.batches import epoch_batches
from afs_mlx.engine.training.rows import Row
from afs_mlx.schema.recipe import Recipe


@dataclass(frozen=True)
class Window:
    """The rows of one optimizer step, by micro-batch; `validates` says that a validation follows."""

    epoch: int
    groups: list[list[int]]
    validates: bool


def training_windows(rows: Sequence[Row], recipe: Recipe) -> list[Window]:
    """All steps of all epochs, in order."""
    found: list[Window] = []
    for epoch in range(1, recipe.epochs + 1):
        steps = list(windows(epoch_batches(rows, recipe.batch_tokens, recipe.seed, epoch), recipe.accumulation))
        every = max(1, math.ceil(len(steps) / recipe.validations_per_epoch))
        for index, groups in enumerate(steps, start=1):
            found.append(Window(epoch, groups, index % every == 0 or index == len(steps)))
    return found


def padding_share(windows: Sequence[Window], lengths: Sequence[int]) -> float:
    """What padding would be of all tokens, were every micro-batch padded to its longest row."""
    groups = [group for window in windows for group in window.groups]
    padded = sum(len(group) * max(lengths[i] for i in group) for group in groups)
    return 1 - sum(lengths[i] for group in groups for i in group) / padded


def windows(batches: Sequence[list[int]], size: int) -> Iterator[list[list[int]]]:
    """Micro-batches per optimizer step; the last window keeps what is left."""
    for start in range(0, len(batches), size):
        yield list(batches[start : start + size])
