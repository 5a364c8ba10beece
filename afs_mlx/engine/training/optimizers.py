"""mlx's optimizers by the names a recipe gives them, and their state as named arrays."""

import inspect
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_unflatten

from afs_mlx.core.errors import AfsError, closest, problems
from afs_mlx.schema.recipe import OptimizerName, Recipe

CLASSES: dict[OptimizerName, Any] = {
    "adamw": optim.AdamW,
    "adam": optim.Adam,
    "adamax": optim.Adamax,
    "adagrad": optim.Adagrad,
    "adadelta": optim.AdaDelta,
    "rmsprop": optim.RMSprop,
    "adafactor": optim.Adafactor,
    "lion": optim.Lion,
    "muon": optim.Muon,
    "sgd": optim.SGD,
}
# As in the papers and in PyTorch: without the correction mlx's early steps are several times the rate asked for, and
# Adafactor would ignore the recipe's rate, or scale it by each matrix's size, a thousandth for b, which starts at zero.
DEFAULTS: dict[str, dict[str, bool]] = {
    "adamw": {"bias_correction": True},
    "adam": {"bias_correction": True},
    "adafactor": {"relative_step": False, "scale_parameter": False},
}
RECIPE_KEYS = ("learning_rate", "weight_decay")  # these have keys of their own
SHARES = ("betas", "beta_1", "momentum", "dampening", "rho", "alpha")  # moving averages: in [0, 1)


def make(recipe: Recipe) -> optim.Optimizer:
    """The recipe's optimizer at its peak rate; the schedule is the caller's, by `optimizer.learning_rate = …`.

    Muon turns matrices alone; other arrays (DoRA's lengths) get AdamW beside it, as its authors advise. Raises AfsError
    that lists every option which the optimizer does not have or cannot use.
    """
    options = _options(recipe)
    try:
        optimizer: optim.Optimizer = CLASSES[recipe.optimizer](learning_rate=recipe.learning_rate, **options)
    except ValueError as error:
        raise AfsError(str(error), "optimizer_options", "mend the value") from error
    if recipe.optimizer != "muon":
        return optimizer
    beside = optim.AdamW(learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay, bias_correction=True)
    return optim.MultiOptimizer([optimizer, beside], [lambda _, array: array.ndim >= 2])


def flat(state: dict[str, Any]) -> dict[str, mx.array]:
    """An optimizer's state as arrays by dotted name, among them step and learning_rate."""
    return dict(tree_flatten(state))


def restore(optimizer: optim.Optimizer, arrays: Mapping[str, mx.array]) -> None:
    """Give an optimizer made from the same recipe the state that `flat` named; raises AfsError for another's."""
    own, found = flat(optimizer.state), dict(arrays)
    if missing := sorted(own.keys() - found.keys()):
        what = f"this is not the state of {type(optimizer).__name__}: it lacks {', '.join(missing)}"
        raise AfsError(what, "optimizer state", "resume with the recipe that the checkpoint was made with")
    optimizer.state = tree_unflatten(found)


def _options(recipe: Recipe) -> dict[str, Any]:
    """What the class is called with beside the rate."""
    signature = inspect.signature(CLASSES[recipe.optimizer])
    known = {name: p.default for name, p in signature.parameters.items() if name not in RECIPE_KEYS}
    options: dict[str, Any] = dict(DEFAULTS.get(recipe.optimizer, {}))
    if "weight_decay" in signature.parameters:
        options["weight_decay"] = recipe.weight_decay
    found = []
    for name, value in recipe.optimizer_options.items():
        if name in RECIPE_KEYS:
            found.append(f"{name}: a key of its own; --set {name}=…")
        elif name not in known:
            near = closest(name, list(known)) if known else "it has none"
            found.append(f"{name}: {recipe.optimizer} has no such option; {near}")
        elif problem := _problem(name, value, known[name]):
            found.append(f"{name}: {problem}")
        else:
            options[name] = int(value) if type(known[name]) is int and isinstance(value, float) else value
    if found:
        raise problems(found, "bad optimizer options", "optimizer_options", "mend these keys")
    return options


def _problem(name: str, value: bool | float | tuple[float, ...], default: Any) -> str:
    """What is wrong with an option's value, told by the default that it replaces; None stands for a number."""
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "true or false is expected"
    if isinstance(default, list | tuple):
        if not isinstance(value, tuple) or len(value) != len(default):
            return f"{len(default)} numbers are expected, such as {list(default)}"
    elif isinstance(value, bool | tuple):
        return "a number is expected"
    if isinstance(default, int) and not float(value).is_integer():  # type: ignore[arg-type]
        return "a whole number is expected"
    numbers = value if isinstance(value, tuple) else (value,)
    if name in SHARES and not all(0 <= number < 1 for number in numbers):
        return "0 or more and below 1 is expected"
    if name in ("eps", "clip_threshold") and not all(number > 0 for number in numbers):
        return "above 0 is expected"
    return ""
