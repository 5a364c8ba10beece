"""Random experts for the tests of the pool: adapters that differ in rank, targets, layers, scale and kind."""

import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
from mlx_lm.generate import generate_step

from afs_mlx.engine.adapters.format import AdapterConfig, LoraParameters, write_adapter
from afs_mlx.engine.adapters.linears import base_linears
from afs_mlx.engine.bases.location import BaseFolder
from afs_mlx.schema.message import Message
from afs_mlx.schema.sampling import Sampling

GREEDY = Sampling(temperature=0, top_p=1, max_tokens=24)
ATTENTION = tuple(f"self_attn.{name}_proj" for name in "qkvo")
MLP = tuple(f"mlp.{name}_proj" for name in ("gate", "up", "down"))

# name → rank, scale, keys, last layers (-1: all), kind
EXPERTS: dict[str, tuple[int, float, tuple[str, ...], int, str]] = {
    "small": (2, 2.0, ("self_attn.q_proj", "self_attn.v_proj"), -1, "lora"),
    "wide": (16, 2.0, (*ATTENTION, *MLP), -1, "lora"),
    "last": (4, 0.7, MLP, 2, "lora"),
    "odd": (5, 3.3, ATTENTION, 3, "lora"),
    "strong": (8, 20.0, ("mlp.down_proj",), -1, "lora"),
    "single": (1, 1.0, ("self_attn.o_proj",), 1, "lora"),
}
DORA = (4, 2.0, (*ATTENTION, *MLP), -1, "dora")


def make_expert(base: Path, folder: Path, kind: tuple[int, float, tuple[str, ...], int, str], seed: int) -> Path:
    """An adapter of noise, as strong as the weights that it changes."""
    rank, scale, keys, layers, method = kind
    found, rng = base_linears(base), np.random.default_rng(seed)
    first = 0 if layers < 0 else found.layers - layers
    tensors: dict[str, Any] = {}
    for path, (outputs, inputs) in found.shapes.items():
        _, _, layer, key = path.split(".", 3)
        if key not in keys or int(layer) < first:
            continue
        a, b = rng.normal(size=(inputs, rank)), rng.normal(size=(rank, outputs))
        b *= 0.1 / (scale * (a @ b).std())
        tensors |= {f"{path}.lora_a": a, f"{path}.lora_b": b}
        if method == "dora":
            tensors[f"{path}.m"] = rng.uniform(0.5, 2.0, outputs)
    parameters = LoraParameters(rank=rank, scale=scale, dropout=0.0, keys=keys)
    config = AdapterConfig(fine_tune_type=method, num_layers=layers, lora_parameters=parameters)
    write_adapter(folder, tensors, config)
    return folder


def make_experts(base: Path, folder: Path) -> dict[str, Path]:
    """The six, each in a folder of its name."""
    return {
        name: make_expert(base, folder / name, kind, seed) for seed, (name, kind) in enumerate(EXPERTS.items(), start=1)
    }


def replace_expert(folder: Path, new: Path) -> None:
    """Put other files where an adapter lies, as a run that is trained again does."""
    for file in new.iterdir():
        shutil.copyfile(file, folder / file.name)


def alone(base: Path, adapter: Path | None, prompt: list[int], max_tokens: int) -> list[int]:
    """What mlx-lm itself answers with this adapter alone, greedily, up to and with an end token."""
    model, tokenizer = mlx_lm.load(str(base), adapter_path=str(adapter) if adapter else None)[:2]
    tokens: list[int] = []
    for token, _ in generate_step(mx.array(prompt), model, max_tokens=max_tokens):
        tokens.append(int(token))
        if tokens[-1] in tokenizer.eos_token_ids:
            break
    return tokens


def logits_alone(base: Path, adapter: Path | None, prompt: list[int]) -> np.ndarray[Any, Any]:
    """mlx-lm's logits for every place of a prompt."""
    model = mlx_lm.load(str(base), adapter_path=str(adapter) if adapter else None)[0]
    return np.array(model(mx.array(prompt)[None]))


def tiny(folder: Path) -> BaseFolder:
    """The folder of tiny-qwen2 as a base."""
    return BaseFolder("tiny-qwen2", folder, demo=True)


def asked(question: str, system: str = "") -> list[Message]:
    """A conversation of one question."""
    opening = [Message(role="system", content=system)] if system else []
    return [*opening, Message(role="user", content=question)]
