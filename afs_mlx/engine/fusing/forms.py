"""Which layer is stored in how many bits. Knows module names and kinds, not numbers."""

from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.convert import mixed_quant_predicate_builder

from afs_mlx.engine.fusing.options import StorageOptions

GROUP_SIZE = 64  # mlx-lm's own

type Mode = Literal["affine", "mxfp4", "nvfp4", "mxfp8"]


@dataclass(frozen=True)
class Form:
    """A quantisation; None stands for a plain weight where a form is expected."""

    bits: int
    group_size: int
    mode: Mode = "affine"

    def as_dict(self) -> dict[str, int | str]:
        """As mlx-lm's config.json spells it."""
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}


def own_form(module: nn.Module) -> Form | None:
    """How a base stores a layer."""
    if not isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding):
        return None
    return Form(module.bits, module.group_size, cast(Mode, module.mode))


def quantisable(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that mlx-lm quantises, and those that are quantised already."""
    return {
        path: module
        for path, module in model.named_modules()
        if hasattr(module, "to_quantized") or own_form(module) is not None
    }


def default_form(model: nn.Module, options: StorageOptions) -> Form | None:
    """What config.json names for the model as a whole: for a mixture its lower bits."""
    if options.quantize == "none":
        return None
    own = next((form for module in quantisable(model).values() if (form := own_form(module))), None)
    # A group of an mxfp4 base is none of affine's.
    group = options.group_size or (own.group_size if own and own.group_size in (32, 64, 128) else GROUP_SIZE)
    bits = options.quantize.split("_")[1] if "_" in options.quantize else options.quantize
    return Form(int(bits), group)


def asked_forms(model: nn.Module, options: StorageOptions) -> dict[str, Form | None]:
    """The form that `quantize` asks for, by the path of each quantisable layer; None where its rows do not divide."""
    layers = quantisable(model)
    default = default_form(model, options)
    if default is None:
        return dict.fromkeys(layers)
    choose: Any = getattr(model, "quant_predicate", None)
    if "_" in options.quantize:
        choose = mixed_quant_predicate_builder(options.quantize, model, default.group_size)
    forms: dict[str, Form | None] = {}
    for path, module in layers.items():
        chosen = choose(path, module) if choose else True
        form = Form(**chosen) if isinstance(chosen, dict) else default if chosen else None
        forms[path] = form if form is None or _inputs(module) % form.group_size == 0 else None
    return forms


def forms_of(model: nn.Module, changed: set[str], options: StorageOptions) -> dict[str, Form | None]:
    """What each quantisable layer of a model is stored in, `changed` being the paths that the adapter changes."""
    layers, asked = quantisable(model), asked_forms(model, options)
    return {path: _final(own_form(layers[path]), asked[path], options, changed=path in changed) for path in layers}


def _final(own: Form | None, asked: Form | None, options: StorageOptions, *, changed: bool) -> Form | None:
    """The form of one layer, given the base's own and the one asked for.

    A quantised base's layer stays as it is where it is no larger than asked: more bits could not add anything. A
    changed one gets more bits, since its own grid holds a small update only at the cost of noise elsewhere.
    """
    if own is None or asked is None:
        return asked
    if not changed:
        return own if own.bits <= asked.bits else asked
    if options.changed == "same":
        return asked
    return None if options.changed == "16" else replace(asked, bits=max(8, asked.bits))


def quantisation_config(default: Form | None, forms: dict[str, Form | None]) -> dict[str, Any]:
    """The value of `quantization` in config.json; empty for a model without any."""
    if default is None:
        return {}
    others = {path: form.as_dict() for path, form in forms.items() if form is not None and form != default}
    return {**default.as_dict(), **others}


def float_dtype(model: nn.Module) -> mx.Dtype:
    """The floating type that plain weights of the result have: the base's own, 16 bits for a quantised base."""
    layers = quantisable(model)
    scales = next((m.scales for m in layers.values() if own_form(m) and m.scales.dtype != mx.uint8), None)
    if any(own_form(module) for module in layers.values()):
        return scales.dtype if scales is not None and scales.dtype == mx.float16 else mx.bfloat16
    largest: mx.Dtype = max((module.weight for module in layers.values()), key=lambda weight: weight.size).dtype
    return largest


def _inputs(module: nn.Module) -> int:
    form = own_form(module)
    columns: int = module.weight.shape[-1]
    return columns * 32 // form.bits if form else columns
