"""Recipes in the field's terms; values that train nothing or break are refused."""

import pytest
from pydantic import ValidationError

from afs_mlx.core.config import apply_overrides, validate
from afs_mlx.core.errors import AfsError
from afs_mlx.schema.recipe import Recipe
from afs_mlx.schema.sampling import Sampling


def test_scale_is_alpha_over_rank() -> None:
    assert Recipe(rank=4, alpha=8).scale == 2.0
    assert Recipe(rank=16, alpha=16).scale == 1.0
    assert Recipe(rank=8, alpha=20).scale == 2.5


def test_a_rank_stabilised_scale_is_alpha_over_the_root_of_the_rank() -> None:
    assert Recipe(rank=16, alpha=16, rslora=True).scale == 4.0
    assert Recipe(rank=1, alpha=3, rslora=True).scale == Recipe(rank=1, alpha=3).scale == 3.0


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
        ("method", "qlora"),
        ("rslora", "perhaps"),
        ("optimizer", "adam8bit"),
        ("optimizer", ""),
        ("optimizer_options", {"eps": float("nan")}),
        ("optimizer_options", ["betas"]),
        ("final_rate", -0.1),
        ("final_rate", 1.1),
        ("spike_factor", -1),
        ("patience", -1),
        ("checkpoint_steps", 0),
        ("keep_checkpoints", 0),
        ("samples", -1),
        ("sample_tokens", 0),
        ("speed", {"lean": "perhaps"}),
        ("speed", {"head_chunk": -1}),
        ("speed", {"compile": "yes"}),
        ("speed", {"memory_gb": -1}),
        ("speed", {"leen": True}),
        ("lean", True),
    ],
)
def test_what_a_recipe_refuses(key: str, value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate({key: value})
    assert {(*error["loc"], key)[0] for error in caught.value.errors()} == {key}


def test_all_problems_of_a_recipe_come_together() -> None:
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate({"rank": 0, "epochs": 0, "typo": 1})
    assert {e["loc"][0] for e in caught.value.errors()} == {"rank", "epochs", "typo"}


def test_the_tables_inside_a_recipe_are_set_key_by_key() -> None:
    value = apply_overrides(
        {}, ["speed.lean=false", "optimizer_options.betas=[0.8, 0.9]", "optimizer_options.eps=1e-6"]
    )
    recipe = Recipe.model_validate(value)
    assert (recipe.speed.lean, recipe.speed.keep_frozen) == (False, True)
    assert recipe.optimizer_options == {"betas": (0.8, 0.9), "eps": 1e-6}
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


def test_a_misspelt_switch_is_named_with_its_table() -> None:
    with pytest.raises(AfsError, match=r"speed\.leen: there is no such key; did you mean 'lean'\?"):
        validate(Recipe, {"speed": {"leen": False}}, "recipe.toml")


@pytest.mark.parametrize("value", ["error", "drop", "truncate"])
def test_a_length_policy(value: str) -> None:
    assert Recipe.model_validate({"over_long": value}).over_long == value


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
