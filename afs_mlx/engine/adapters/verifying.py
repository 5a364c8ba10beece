"""Proof of a conversion: logits through mlx-lm with the adapter, beside those of a reference, both in float32.

The reference is PEFT itself where torch is at hand, else the base with W + ΔW in place of each adapted weight, computed
from PEFT's own files without LoRA modules. Both run on the CPU: Metal may shorten float32 products. The base is held in
float32 once at a time (four bytes a weight; quantised weights stay packed except the adapted ones).
"""

import importlib.util
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten
from mlx_lm.utils import load_adapters, load_model

from afs_mlx.core.errors import RefusedError
from afs_mlx.core.process import run_limited
from afs_mlx.engine.adapters.format import check_adapter_folder
from afs_mlx.engine.adapters.layouts import layout_of
from afs_mlx.engine.adapters.linears import base_linears
from afs_mlx.engine.adapters.peft_reading import PeftAdapter, PeftLayer, read_peft
from afs_mlx.engine.adapters.tensors import FloatArray
from afs_mlx.engine.bases.loading import check_weights

PEFT_PYTHON = "AFS_MLX_PEFT_PYTHON"  # a Python with torch, transformers and peft
TOKENS = 16
TOLERANCE = 1e-4  # of the largest logit, or of 1 where all are smaller
TIMEOUT_S = 1800.0


@dataclass(frozen=True)
class Verification:
    """How far the logits are apart at most; `notice` says why PEFT was not asked or failed."""

    reference: str
    tokens: int
    largest_difference: float
    largest_logit: float
    tolerance: float
    notice: str = ""

    @property
    def agrees(self) -> bool:
        """False for NaN, too."""
        return self.largest_difference <= self.tolerance

    def record(self) -> dict[str, Any]:
        """For the manifest."""
        return {key: value for key, value in asdict(self).items() if value != ""}


def verify(peft_folder: Path, base_folder: Path, adapter: Path, name: str = "") -> Verification:
    """Compare the MLX folder `adapter` with the PEFT adapter it was made from, on its base."""
    check_weights(base_folder)
    check_adapter_folder(adapter, base_folder)
    source = read_peft(peft_folder, name)
    tokens = _tokens(int(base_linears(base_folder).identity.get("vocab_size", 2)))
    device = mx.default_device()
    mx.set_default_device(mx.cpu)
    try:
        found = _logits(_with_adapter(base_folder, adapter), tokens)
        expected, reference, notice = _reference(source, base_folder, tokens)
    finally:
        mx.set_default_device(device)
    largest = float(np.abs(expected).max())
    difference = float(np.abs(found - expected).max())
    return Verification(reference, TOKENS, difference, largest, TOLERANCE * max(1.0, largest), notice)


def demand(verification: Verification, adapter: Path) -> None:
    """Raise RefusedError (exit 4) where the logits do not agree."""
    if not verification.agrees:
        raise RefusedError(
            f"the converted adapter does not agree with {verification.reference}: logits differ by "
            f"{verification.largest_difference:.2g}, tolerated are {verification.tolerance:.2g}",
            str(adapter),
            "nothing was registered; check that --base is the base it was trained on, and report this",
        )


def _tokens(vocabulary: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Spread over the vocabulary, the same each time."""
    return np.random.default_rng(0).integers(0, vocabulary, TOKENS)


def _with_adapter(base_folder: Path, adapter: Path) -> nn.Module:
    model = _float32(load_model(base_folder, lazy=True, trust_remote_code=False)[0])
    return load_adapters(model, str(adapter))


def _float32(model: nn.Module) -> nn.Module:
    model.set_dtype(mx.float32)
    return model


def _logits(model: nn.Module, tokens: np.ndarray[Any, Any]) -> FloatArray:
    """(tokens, vocabulary)."""
    model.eval()
    return np.array(model(mx.array(tokens)[None])[0].astype(mx.float32))


def _reference(source: PeftAdapter, base_folder: Path, tokens: np.ndarray[Any, Any]) -> tuple[FloatArray, str, str]:
    """The reference's logits, its name, and why it is not PEFT where PEFT could have been asked."""
    python, notice = _peft_python(), ""
    if python:
        notice = _unfit_for_peft(source, base_folder)
        if not notice:
            answer = _peft_logits(python, source, base_folder, tokens)
            if isinstance(answer, tuple):
                return *answer, ""
            notice = f"PEFT failed: {answer}"
    return _logits(_plain(source, base_folder), tokens), "float32 base + ΔW", notice


def _peft_python() -> str:
    here = all(importlib.util.find_spec(name) for name in ("torch", "peft", "transformers"))
    return sys.executable if here else os.environ.get(PEFT_PYTHON, "")


def _unfit_for_peft(source: PeftAdapter, base_folder: Path) -> str:
    """Why torch is not given these files."""
    if base_linears(base_folder).bits:
        return "PyTorch does not read mlx's quantised weights"
    files = {tensor.path.name for tensor in source.tensors}
    return "" if files == {"adapter_model.safetensors"} else f"PEFT is not given {', '.join(sorted(files))}"


def _peft_logits(
    python: str, source: PeftAdapter, base_folder: Path, tokens: np.ndarray[Any, Any]
) -> tuple[FloatArray, str] | str:
    """PEFT's logits and versions, or the last line of its complaint."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        np.save(folder / "tokens.npy", tokens)
        # -I also keeps the script's folder off the path, where our peft.py would be taken for theirs.
        script = Path(__file__).with_name("peft_reference.py")
        done = run_limited(
            [python, "-I", script, base_folder.resolve(), source.folder.resolve(), "tokens.npy", "logits.npy"],
            cwd=folder,
            timeout_s=TIMEOUT_S,
            cpu_s=int(TIMEOUT_S) * 8,
            memory_bytes=2**46,  # torch reserves far more addresses than it uses
            file_bytes=2**31,
            output_bytes=2**16,
        )
        if done.returncode or not (folder / "logits.npy").is_file():
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            return "it took too long" if done.timed_out else (lines[-1] if lines else f"exit {done.returncode}")
        logits: FloatArray = np.load(folder / "logits.npy", allow_pickle=False).astype(np.float32)
        return logits, done.stdout.decode(errors="replace").strip().splitlines()[-1]


def _plain(source: PeftAdapter, base_folder: Path) -> nn.Module:
    """The base with W + ΔW in place of each adapted weight, in float32."""
    model = _float32(load_model(base_folder, lazy=True, trust_remote_code=False)[0])
    layout = layout_of(str(base_linears(base_folder).identity["model_type"]))
    whole = [(layout.to_mlx(name), mx.array(tensor.floats())) for name, tensor in source.whole.items()]
    model.load_weights(whole, strict=False)
    modules = dict(model.named_modules())
    for path, layer in source.embeddings.items():
        embedding = modules[layout.to_mlx(path)]
        delta = layer.scale * (mx.array(layer.a.floats()).T @ mx.array(layer.b.floats()).T)
        embedding.weight = embedding.weight + delta
    for path, (tensor, tokens) in source.rows.items():
        modules[layout.to_mlx(path)].weight[mx.array(tokens)] = mx.array(tensor.floats())
    for path, layer in source.layers.items():
        plain = _merged(modules[layout.to_mlx(path)], layer)
        if path in source.b_biases:
            plain.bias = plain.bias + layer.scale * mx.array(source.b_biases[path].floats())
        model.update_modules(tree_unflatten([(layout.to_mlx(path), plain)]))
    return model


def _merged(linear: nn.Module, layer: PeftLayer) -> nn.Linear:
    """One layer with W + scale · B·A, and with DoRA its rows brought to their lengths."""
    weight = linear.weight
    if isinstance(linear, nn.QuantizedLinear):
        biases = linear.get("biases")
        weight = mx.dequantize(weight, linear.scales, biases, linear.group_size, linear.bits, linear.mode)
    weight = weight.astype(mx.float32) + layer.scale * (mx.array(layer.b.floats()) @ mx.array(layer.a.floats()))
    if layer.magnitude is not None:
        weight = weight * (mx.array(layer.magnitude.floats()) / mx.linalg.norm(weight, axis=1))[:, None]
    plain = nn.Linear(1, 1, bias="bias" in linear)
    plain.weight = weight
    if "bias" in linear:
        plain.bias = linear.bias
    return plain
