"""How many scores attention computes and keeps, by the two ways that it goes: our query blocks, or all at once."""

from dataclasses import dataclass

import numpy as np

from afs_mlx.engine.training.compute.attention import BLOCK, STORED_CELLS
from afs_mlx.engine.training.planning.shapes import Column, Columns
from afs_mlx.schema.recipe import Recipe


@dataclass(frozen=True)
class Cells:
    """Queries times keys of one head in one block of the model, summed over a batch's rows.

    `kept` of them wait for the gradient as probabilities, `again` are made a second time for it, `largest` exist
    together while one of our query blocks, or all of mlx's attention, is computed. `masks` are the cells of our causal
    masks, which wait as well, whatever the number of heads and rows.
    """

    made: Column
    kept: Column
    again: Column
    largest: Column
    masks: Column

    @classmethod
    def of(cls, columns: Columns, recipe: Recipe) -> "Cells":
        """`recipe` with its switches as they apply: `fast_exp` says that attention is ours."""
        looking_back = _call(columns.rows, columns.longest, columns.longest + columns.shared, own=recipe.speed.fast_exp)
        alone = _call(np.ones_like(columns.rows), columns.shared, columns.shared, own=recipe.speed.fast_exp)
        return cls(
            looking_back.made + alone.made,
            looking_back.kept + alone.kept,
            looking_back.again + alone.again,
            np.maximum(looking_back.largest, alone.largest),
            looking_back.masks + alone.masks,
        )


def _call(rows: Column, queries: Column, keys: Column, *, own: bool) -> Cells:
    """Attention of `rows` times so many queries over so many keys."""
    every = rows * queries * keys
    if not own:
        zero = np.zeros_like(every)
        return Cells(every, every, zero, every, zero)
    # Blocks 1 to n - 1 have BLOCK queries, each sees the keys up to its end; the last has what is left and sees all.
    blocks = np.maximum(1, np.ceil((queries - BLOCK // 2) / BLOCK))
    last = queries - BLOCK * (blocks - 1)
    before = BLOCK * ((blocks - 1) * (keys - queries) + BLOCK * blocks * (blocks - 1) / 2)
    masks = before + last * keys
    made = rows * masks
    stored = queries * keys <= STORED_CELLS
    largest = rows * np.maximum(last, np.where(blocks > 1, BLOCK, 0)) * keys
    return Cells(made, np.where(stored, made, 0), np.where(stored, 0, made), largest, masks)
