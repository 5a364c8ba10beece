"""The learning rate of each step."""

import math

from afs_mlx.schema.recipe import Recipe

FLOOR = 0.1  # linear and cosine end at this share of the peak


def learning_rate(recipe: Recipe, step: int, total_steps: int) -> float:
    """The rate of step `step` (1 … total_steps): a linear rise, then the recipe's schedule."""
    warmup = round(recipe.warmup_fraction * total_steps)
    if step <= warmup:
        return recipe.learning_rate * step / (warmup + 1)
    if recipe.schedule == "constant":
        return recipe.learning_rate
    done = (step - warmup - 1) / max(1, total_steps - warmup - 1)
    fall = (1 + math.cos(math.pi * done)) / 2 if recipe.schedule == "cosine" else 1 - done
    return recipe.learning_rate * (FLOOR + (1 - FLOOR) * fall)
