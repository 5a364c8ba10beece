"""Recipes in the field's terms; values that train nothing or break are refused."""

import pytest
from pydantic import ValidationError

from afs_mlx.schema.recipe import Recipe
from afs_mlx.schema.sampling import Sampling


def test_scale_is_alpha_over_rank() -> None:
    assert Recipe(rank=4, alpha=8).scale == 2.0
    assert Recipe(rank=16, alpha=16).scale == 1.0
    assert Recipe(rank=8, alpha=20).scale == 2.5


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rank", 0),
        ("rank", -1),
        ("rank", 1.5),
        ("rank", "many"),
        ("alpha", 0),
        ("alpha", float("inf")),
        ("dropout", 1),
        ("dropout", -0.1),
        ("layers", 0),
        ("layers", -2),
        ("learning_rate", 0),
        ("learning_rate", 2),
        ("learning_rate", float("nan")),
        ("weight_decay", -1),
        ("warmup_fraction", 1),
        ("schedule", "cosinus"),
        ("epochs", 0),
        ("batch_tokens", 0),
        ("accumulation", 0),
        ("max_seq_tokens", 7),
        ("over_long", "cut"),
        ("clip_norm", 0),
        ("validations_per_epoch", 0),
        ("seed", -1),
        ("seed", 2**32),
        ("targets", "q_proj"),
        ("scale", 20),
        ("lora_alpha", 16),
    ],
)
def test_what_a_recipe_refuses(key: str, value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate({key: value})
    assert len(caught.value.errors()) == 1


def test_all_problems_of_a_recipe_come_together() -> None:
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate({"rank": 0, "epochs": 0, "typo": 1})
    assert {e["loc"][0] for e in caught.value.errors()} == {"rank", "epochs", "typo"}


def test_targets_come_from_a_list() -> None:
    assert Recipe.model_validate({"targets": ["q_proj", "v_proj"]}).targets == ("q_proj", "v_proj")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 6),
        ("temperature", float("nan")),
        ("top_p", 0),
        ("top_p", 1.01),
        ("context_tokens", 0),
        ("max_tokens", 0),
        ("top_k", 40),
    ],
)
def test_what_sampling_refuses(key: str, value: float) -> None:
    with pytest.raises(ValidationError):
        Sampling.model_validate({key: value})


def test_greedy_is_allowed() -> None:
    assert Sampling(temperature=0, top_p=1).temperature == 0
