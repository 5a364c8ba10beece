"""Every optimizer by name, its options checked, its state out and back bit for bit."""

from typing import Any, get_args

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from afs_mlx.core.errors import AfsError
from afs_mlx.engine.training import optimizers
from afs_mlx.schema.recipe import OptimizerName, Recipe

NAMES: tuple[OptimizerName, ...] = get_args(OptimizerName.__value__)
# Options under which an optimizer keeps all the state that it can.
FULL: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9},
    "adafactor": {"beta_1": 0.9},
}


class Adapted(nn.Module):
    """Parameters as adapters have them: in a list whose first blocks are frozen, matrices and a vector `m`."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(6, 4) for _ in range(3)]
        self.freeze()
        rng = np.random.default_rng(1)
        for block in self.layers[1:]:
            block.lora_a = mx.array(rng.normal(size=(6, 3)).astype(np.float32))
            block.lora_b = mx.zeros((3, 4))
            block.m = mx.array(rng.uniform(1, 2, 4).astype(np.float32))

    @property
    def adapters(self) -> dict[str, mx.array]:
        return dict(tree_flatten(self.trainable_parameters()))


def step(model: Adapted, optimizer: optim.Optimizer, number: int) -> None:
    """A step with gradients and a rate that only its number decides."""
    rng = np.random.default_rng((7, number))
    gradients = {
        name: mx.array(rng.normal(size=array.shape).astype(np.float32)) for name, array in model.adapters.items()
    }
    optimizer.learning_rate = 0.01 / number
    optimizer.update(model, tree_unflatten(list(gradients.items())))
    mx.eval(model.parameters(), optimizer.state)


def recipe(name: str, **settings: Any) -> Recipe:
    return Recipe.model_validate({"optimizer": name, "learning_rate": 0.01, **settings})


def equal(found: dict[str, mx.array], expected: dict[str, mx.array]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert mx.array_equal(found[name], array), name


def test_every_name_of_the_recipe_is_an_optimizer_of_mlx() -> None:
    assert set(optimizers.CLASSES) == set(NAMES)
    own = {cls for cls in vars(optim).values() if isinstance(cls, type) and issubclass(cls, optim.Optimizer)}
    assert set(optimizers.CLASSES.values()) == own - {optim.Optimizer, optim.MultiOptimizer}


@pytest.mark.parametrize("name", NAMES)
def test_a_restored_optimizer_goes_on_bit_for_bit(name: OptimizerName, tmp_path: Any) -> None:
    settings = recipe(name, optimizer_options=FULL.get(name, {}))
    straight, whole = Adapted(), optimizers.make(settings)
    for number in range(1, 7):
        step(straight, whole, number)

    first, before = Adapted(), optimizers.make(settings)
    for number in range(1, 4):
        step(first, before, number)
    mx.save_safetensors(str(tmp_path / "state.safetensors"), optimizers.flat(before.state))
    second, after = Adapted(), optimizers.make(settings)
    second.load_weights(list(first.adapters.items()), strict=False)
    optimizers.restore(after, mx.load(str(tmp_path / "state.safetensors")))
    equal(optimizers.flat(after.state), optimizers.flat(before.state))
    for number in range(4, 7):
        step(second, after, number)

    equal(second.adapters, straight.adapters)
    equal(optimizers.flat(after.state), optimizers.flat(whole.state))
    assert after.learning_rate.item() == whole.learning_rate.item() == pytest.approx(0.01 / 6)
    steps = [array.item() for key, array in optimizers.flat(after.state).items() if key.endswith("step")]
    assert set(steps) == {6}


@pytest.mark.parametrize("name", NAMES)
def test_without_its_state_an_optimizer_would_go_another_way(name: OptimizerName) -> None:
    """So that the test above cannot pass with a state that plays no part."""
    settings = recipe(name, optimizer_options=FULL.get(name, {}))
    straight, whole = Adapted(), optimizers.make(settings)
    second, fresh = Adapted(), optimizers.make(settings)
    for number in range(1, 5):
        step(straight, whole, number)
        step(second, fresh if number < 4 else optimizers.make(settings), number)
    assert any(not mx.array_equal(array, straight.adapters[key]) for key, array in second.adapters.items())


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_moves_every_array_and_obeys_its_rate(name: OptimizerName) -> None:
    def moved(rate: float) -> dict[str, float]:
        model, optimizer = Adapted(), optimizers.make(recipe(name, weight_decay=0))
        before = model.adapters
        optimizer.learning_rate = rate
        rng = np.random.default_rng(3)
        gradients = [(n, mx.array(rng.normal(size=a.shape).astype(np.float32))) for n, a in before.items()]
        optimizer.update(model, tree_unflatten(gradients))
        return {n: mx.abs(array - before[n]).max().item() for n, array in model.adapters.items()}

    slow, fast = moved(1e-3), moved(1e-2)
    for key, change in slow.items():
        assert change > 0, key
        assert fast[key] == pytest.approx(10 * change, rel=0.05), key


def test_adams_first_step_is_the_rate_that_was_asked_for() -> None:
    """mlx leaves the bias correction out unless it is told."""
    for name in ("adam", "adamw"):
        model, optimizer = Adapted(), optimizers.make(recipe(name, weight_decay=0, learning_rate=1e-3))
        before = model.adapters
        gradients = [(n, mx.full(a.shape, 0.1)) for n, a in before.items()]
        optimizer.update(model, tree_unflatten(gradients))
        for key, array in model.adapters.items():
            assert mx.abs(before[key] - array).max().item() == pytest.approx(1e-3, rel=1e-3)
    stock, plain = Adapted(), optim.AdamW(1e-3, weight_decay=0)
    before = stock.adapters
    plain.update(stock, tree_unflatten(gradients))
    assert mx.abs(before["layers.1.m"] - stock.adapters["layers.1.m"]).max().item() > 3e-3


def test_adafactor_follows_the_recipes_rate_also_where_a_matrix_is_zero() -> None:
    model, optimizer = Adapted(), optimizers.make(recipe("adafactor", learning_rate=1e-3))
    step(model, optimizer, 1)
    size = mx.sqrt(mx.mean(mx.square(model.adapters["layers.1.lora_b"]))).item()
    assert size == pytest.approx(0.01, rel=0.05), "the rate that step 1 sets, not a thousandth of it"


def test_muon_turns_matrices_and_leaves_vectors_to_adamw() -> None:
    settings = recipe("muon", weight_decay=0.1, learning_rate=0.01)
    model, optimizer = Adapted(), optimizers.make(settings)
    alone, adamw = Adapted(), optim.AdamW(0.01, weight_decay=0.1, bias_correction=True)
    other, muon = Adapted(), optim.Muon(0.01, weight_decay=0.1)
    for number in (1, 2):
        step(model, optimizer, number)
        step(alone, adamw, number)
        step(other, muon, number)
    for key, array in model.adapters.items():
        expected = alone if key.endswith(".m") else other
        assert mx.array_equal(array, expected.adapters[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_weight_decay_goes_where_there_is_one(name: OptimizerName) -> None:
    optimizer = optimizers.make(recipe(name, weight_decay=0.25))
    if isinstance(optimizer, optim.MultiOptimizer):
        optimizer = optimizer.optimizers[0]
    assert getattr(optimizer, "weight_decay", 0.25) == 0.25
    assert hasattr(optimizer, "weight_decay") == (name in ("adamw", "adafactor", "lion", "muon", "sgd"))


def test_options_reach_the_optimizer() -> None:
    options = {"betas": [0.8, 0.95], "eps": 1e-6, "bias_correction": False}
    adamw: Any = optimizers.make(recipe("adamw", optimizer_options=options))
    assert (tuple(adamw.betas), adamw.eps, adamw.bias_correction) == ((0.8, 0.95), 1e-6, False)
    sgd: Any = optimizers.make(recipe("sgd", optimizer_options={"momentum": 0.5, "nesterov": True}))
    assert (sgd.momentum, sgd.nesterov) == (0.5, True)
    muon: Any = optimizers.make(recipe("muon", optimizer_options={"ns_steps": 3}))
    assert muon.optimizers[0].ns_steps == 3
    step(Adapted(), muon, 1)  # a float would not count steps


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adamw", {"beta": 0.9}, r"beta: adamw has no such option; did you mean 'betas'\?"),
        ("sgd", {"betas": (0.9, 0.9)}, "betas: sgd has no such option; known: momentum, dampening, nesterov"),
        ("adamw", {"learning_rate": 1.0}, "learning_rate: a key of its own; --set learning_rate="),
        ("sgd", {"weight_decay": 0.1}, "weight_decay: a key of its own"),
        ("adamw", {"betas": 0.9}, r"betas: 2 numbers are expected, such as \[0.9, 0.999\]"),
        ("adamw", {"betas": (0.9,)}, "betas: 2 numbers are expected"),
        ("adamw", {"betas": (0.9, 1.0)}, "betas: 0 or more and below 1"),
        ("sgd", {"momentum": -0.1}, "momentum: 0 or more and below 1"),
        ("sgd", {"momentum": True}, "momentum: a number is expected"),
        ("adamw", {"eps": 0.0}, "eps: above 0"),
        ("adamw", {"bias_correction": 1.0}, "bias_correction: true or false"),
        ("muon", {"ns_steps": 2.5}, "ns_steps: a whole number"),
        ("adafactor", {"beta_1": (0.9,)}, "beta_1: a number"),
        ("sgd", {"nesterov": True}, "Nesterov momentum requires"),
    ],
)
def test_an_option_that_cannot_be_used_is_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(AfsError, match=message) as caught:
        optimizers.make(Recipe().model_copy(update={"optimizer": name, "optimizer_options": options}))
    assert caught.value.where == "optimizer_options"


def test_all_bad_options_come_together() -> None:
    with pytest.raises(AfsError, match=r"3 problems") as caught:
        optimizers.make(recipe("adamw", optimizer_options={"beta": 0.9, "eps": -1, "bias_correction": 2.0}))
    assert all(key in caught.value.what for key in ("beta:", "eps:", "bias_correction:"))


def test_the_state_of_another_optimizer_is_refused() -> None:
    adamw, muon = (optimizers.make(recipe(name)) for name in ("adamw", "muon"))
    with pytest.raises(AfsError, match=r"not the state of MultiOptimizer: it lacks states\.0\.learning_rate"):
        optimizers.restore(muon, optimizers.flat(adamw.state))
    with pytest.raises(AfsError, match="not the state of AdamW: it lacks learning_rate, step"):
        optimizers.restore(adamw, {})
