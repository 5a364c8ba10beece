"""The learning rate of each step."""

import math

from afs_mlx.schema.recipe import Recipe


def learning_rate(recipe: Recipe, step: int, total_steps: int) -> float:
    """The rate of step `step` (1 … total_steps): a linear rise, then the recipe's schedule down to its `final_rate`."""
    warmup = round(recipe.warmup_fraction * total_steps)
    if step <= warmup:
        return recipe.learning_rate * step / (warmup + 1)
    if recipe.schedule == "constant":
        return recipe.learning_rate
    done = (step - warmup - 1) / max(1, total_steps - warmup - 1)
    fall = (1 + math.cos(math.pi * done)) / 2 if recipe.schedule == "cosine" else 1 - done
    return recipe.learning_rate * (recipe.final_rate + (1 - recipe.final_rate) * fall)
