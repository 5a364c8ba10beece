"""LoRA, DoRA, rsLoRA and QLoRA: what is trained, what is written, what mlx-lm makes of it, and what is refused."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm import load
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.utils import load_model, quantize_model, save_config, save_model

from afs_mlx.core.errors import AfsError
from afs_mlx.engine.adapters.format import AdapterConfig, check_adapter_folder
from afs_mlx.engine.training import lora
from afs_mlx.engine.training.schedule import learning_rate
from afs_mlx.schema.recipe import Recipe

TOKENS = mx.array([[641, 72, 101, 260, 17, 300, 410, 9, 55, 640, 599, 128]])
BASE = {"id": "tiny-qwen2", "weights_sha256": "0" * 64}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"rslora": True},
    "dora": {"method": "dora"},
    "dora, rslora": {"method": "dora", "rslora": True},
}


def quantised(base: Path, folder: Path, bits: int, mode: str = "affine", group_size: int = 32) -> Path:
    """What mlx_lm.convert makes of a base."""
    shutil.copytree(base, folder)
    model, config = quantize_model(*load_model(base), group_size=group_size, bits=bits, mode=mode)
    save_model(folder, model)
    save_config(config, folder / "config.json")
    return folder


@pytest.fixture(scope="module")
def bases(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny base, and the same in 4 and 3 bits."""
    folder = tmp_path_factory.mktemp("bases")
    packed = {f"{bits} bits": quantised(tiny_base, folder / f"tiny-{bits}bit", bits) for bits in (3, 4)}
    return {"whole": tiny_base, **packed, "mxfp4": quantised(tiny_base, folder / "tiny-mxfp4", 4, "mxfp4")}


def made(base: Path, **settings: Any) -> tuple[nn.Module, Recipe, list[str]]:
    """A model as mlx-lm loads it, packed where the base is, with a new adapter."""
    model, _ = load(str(base))
    recipe = Recipe.model_validate({"rank": 4, "alpha": 8, "targets": ["q_proj", "v_proj", "down_proj"], **settings})
    keys = lora.attach(model, recipe)
    model.eval()
    return model, recipe, keys


def moved(model: nn.Module) -> None:
    """As if trained: every adapter array takes another value."""
    rng = np.random.default_rng(5)
    for name, array in lora.adapter_weights(model).items():
        noise = mx.array(rng.normal(0, 0.1, array.shape).astype(np.float32))
        model.load_weights([(name, array * (1 + noise) + noise)], strict=False)


@pytest.mark.parametrize("base", ["whole", "4 bits", "mxfp4"])
@pytest.mark.parametrize("method", METHODS)
def test_what_is_written_answers_in_mlx_lm_as_the_trained_model_does(
    bases: dict[str, Path], tmp_path: Path, method: str, base: str
) -> None:
    model, recipe, keys = made(bases[base], layers=2, **METHODS[method])
    moved(model)
    lora.write(tmp_path / "run", model, recipe, keys, BASE, bases[base], "din")

    check_adapter_folder(tmp_path / "run", bases[base])
    loaded, _ = load(str(bases[base]), adapter_path=str(tmp_path / "run"))
    loaded.eval()
    bare, _ = load(str(bases[base]))
    assert mx.abs(loaded(TOKENS) - model(TOKENS)).max().item() <= 1e-5
    assert mx.abs(bare(TOKENS) - model(TOKENS)).max().item() > 0.1, "an adapter that does nothing would pass"


@pytest.mark.parametrize("method", METHODS)
def test_what_the_files_say(tiny_base: Path, tmp_path: Path, method: str) -> None:
    model, recipe, keys = made(tiny_base, **METHODS[method])
    lora.write(tmp_path / "run", model, recipe, keys, BASE, tiny_base, "din")
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    dora = "dora" in method
    assert config["fine_tune_type"] == ("dora" if dora else "lora")
    assert config["afs"]["rslora"] == ("rslora" in method)
    assert config["afs"]["alpha"] == 8
    assert config["lora_parameters"]["scale"] == (4.0 if "rslora" in method else 2.0)  # 8 / √4, 8 / 4
    assert AdapterConfig.read(tmp_path / "run").alpha == 8
    leaves = {name.rsplit(".", 1)[1] for name in mx.load(str(tmp_path / "run" / "adapters.safetensors"))}
    assert leaves == {"lora_a", "lora_b"} | ({"m"} if dora else set())


@pytest.mark.parametrize(
    ("method", "base"), [(m, base) for m in METHODS for base in ("whole", "4 bits", "mxfp4")] + [("lora", "3 bits")]
)
def test_a_new_adapter_answers_as_the_base(bases: dict[str, Path], method: str, base: str) -> None:
    bare, _ = load(str(bases[base]))
    model, _, _ = made(bases[base], dropout=0.0, **METHODS[method])
    expected = bare(TOKENS)
    assert mx.abs(model(TOKENS) - expected).max().item() <= 1e-5 * mx.abs(expected).max().item()


def test_dora_trains_lengths_beside_directions(tiny_base: Path) -> None:
    model, _, _ = made(tiny_base, method="dora", layers=1)
    names = [name for name, _ in tree_flatten(model.trainable_parameters())]
    layers = ("mlp.down_proj", "self_attn.q_proj", "self_attn.v_proj")
    assert sorted(names) == [f"model.layers.3.{key}.{leaf}" for key in layers for leaf in ("lora_a", "lora_b", "m")]
    down = model.layers[3].mlp.down_proj
    assert isinstance(down, DoRALinear)
    assert mx.allclose(down.m, mx.linalg.norm(down.linear.weight, axis=1))
    assert all(mx.all(array == 0).item() for name, array in lora.adapter_weights(model).items() if "lora_b" in name)

    def loss(model: nn.Module) -> mx.array:
        return nn.losses.cross_entropy(model(TOKENS[:, :-1]), TOKENS[:, 1:], reduction="mean")

    _, gradients = nn.value_and_grad(model, loss)(model)
    for name, gradient in tree_flatten(gradients):
        # a cannot move at first: what it feeds, b, is zero.
        assert bool(mx.any(gradient != 0)) == (not name.endswith("lora_a")), name


def test_the_same_seed_gives_the_same_adapter(tiny_base: Path) -> None:
    first, again, other = (lora.adapter_weights(made(tiny_base, method="dora", seed=seed)[0]) for seed in (3, 3, 4))
    assert all(mx.array_equal(array, again[name]) for name, array in first.items())
    assert not any(mx.array_equal(first[name], other[name]) for name in first if name.endswith("lora_a"))


# What does not fit


@pytest.mark.parametrize("base", ["3 bits", "4 bits"])
def test_a_rank_is_held_against_the_true_sides_of_packed_weights(bases: dict[str, Path], base: str) -> None:
    model, _ = load(str(bases[base]))
    with pytest.raises(AfsError, match=r"rank 65 is above .* side, 64 \(self_attn.q_proj\)") as caught:
        lora.attach(model, Recipe(rank=65, targets=("q_proj",)))
    assert caught.value.fix == "--set rank=64"
    lora.attach(model, Recipe(rank=64, targets=("q_proj",)))


def test_dora_on_weights_that_mlx_lm_miscounts_is_refused(bases: dict[str, Path]) -> None:
    model, _ = load(str(bases["3 bits"]))
    with pytest.raises(AfsError, match=r"no DoRA on 3-bit weights: self_attn.k_proj, self_attn.q_proj") as caught:
        lora.attach(model, Recipe(rank=4, method="dora", targets=("q_proj", "k_proj")))
    assert "--set method=lora" in caught.value.fix


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_base_with_a_number_that_is_none_is_refused_by_its_tensors_name(tiny_base: Path, value: float) -> None:
    model, _ = load(str(tiny_base))
    model.layers[1].mlp.up_proj.weight[3, 4] = value
    model.model.norm.weight[0] = value
    with pytest.raises(AfsError) as caught:
        lora.attach(model, Recipe(rank=4))
    names = "model.layers.1.mlp.up_proj.weight, model.norm.weight"
    assert caught.value.what == f"NaN or infinity stands in the base's {names}"
    assert "pull or build it again" in caught.value.fix


def test_a_broken_scale_of_packed_weights_is_found(bases: dict[str, Path]) -> None:
    model, _ = load(str(bases["4 bits"]))
    model.layers[0].self_attn.q_proj.scales[0, 0] = math.nan
    with pytest.raises(AfsError, match=r"in the base's model\.layers\.0\.self_attn\.q_proj\.scales\n"):
        lora.attach(model, Recipe(rank=4))


def test_large_numbers_are_no_broken_ones(tiny_base: Path) -> None:
    """Their float16 sum overflows."""
    model, _ = load(str(tiny_base))
    weight = mx.full((192, 64), 60000, dtype=mx.float16)
    assert not mx.isfinite(mx.sum(weight)).item()
    model.layers[0].mlp.up_proj.weight = weight
    lora.attach(model, Recipe(rank=4))


def test_everything_that_does_not_fit_comes_in_one_error(tiny_base: Path) -> None:
    model, _ = load(str(tiny_base))
    model.model.norm.weight[0] = math.nan
    with pytest.raises(AfsError, match=r"the recipe does not fit this base \(4 problems\)") as caught:
        lora.attach(model, Recipe(rank=100, layers=9, targets=("k_proj", "wq")))
    text = caught.value.what
    assert "layers: the recipe adapts 9 layers, the base has 4 (--set layers=4)" in text
    assert "targets: targets match no linear layer: wq (linear layers here: down_proj," in text
    assert "rank: rank 100 is above the smallest target matrix's side, 32 (self_attn.k_proj) (--set rank=32)" in text
    assert "base: NaN or infinity stands in the base's model.norm.weight" in text
    assert not [name for name, _ in tree_flatten(model.parameters()) if "lora" in name], "nothing was attached"


def test_nothing_is_written_of_an_adapter_that_is_not_finite(tiny_base: Path, tmp_path: Path) -> None:
    model, recipe, keys = made(tiny_base, method="dora")
    name, array = next((n, a) for n, a in lora.adapter_weights(model).items() if n.endswith(".m"))
    model.load_weights([(name, array * math.nan)], strict=False)
    with pytest.raises(AfsError, match=name):
        lora.write(tmp_path / "run", model, recipe, keys, BASE, tiny_base, "din")
    assert not (tmp_path / "run" / "adapters.safetensors").exists()
    assert not (tmp_path / "run" / "adapter_config.json").exists()


# The schedule's end


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("final", [0.0, 0.1, 0.5, 1.0])
def test_the_rate_ends_where_the_recipe_says(schedule: str, final: float) -> None:
    settings = {"learning_rate": 1e-3, "schedule": schedule, "final_rate": final, "warmup_fraction": 0.1}
    recipe = Recipe.model_validate(settings)
    rates = [learning_rate(recipe, step, 50) for step in range(1, 51)]
    assert max(rates) == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(final * 1e-3, abs=1e-12)
    assert min(rates[5:]) == pytest.approx(final * 1e-3, abs=1e-12)
    middle = rates[5 + 22]  # of the steps 6 … 50
    assert middle == pytest.approx((1 + final) / 2 * 1e-3, rel=1e-6)


def test_a_constant_rate_has_no_end() -> None:
    recipe = Recipe(learning_rate=1e-3, schedule="constant", final_rate=0, warmup_fraction=0)
    assert {learning_rate(recipe, step, 9) for step in range(1, 10)} == {1e-3}
