"""Loading a base from a model folder: checked at the door, no network, no code from the folder.

On a CPU everything becomes float32: quantised and 16-bit matrix products do not go through BLAS there and are 20 to 40
times slower. On Metal the base stays as it is on disk.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx_lm.generate import generate_step
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import dequantize_model, load_model, load_tokenizer
from safetensors import SafetensorError, safe_open

from afs_mlx.core.errors import AfsError, MissingError, RefusedError, problems
from afs_mlx.core.files import read_json
from afs_mlx.engine.bases import smollm2

INDEX_NAME = "model.safetensors.index.json"
QUANTIZATION_KEYS = ("quantization", "quantization_config")
AGAIN = "fetch the base again with afs-mlx pull, or name another folder"


class WrongAnswerError(AfsError):
    """The base loads, but its weights or its tokenizer are not what they should be."""


@dataclass(frozen=True)
class LoadedBase:
    """A base in memory; `config` describes the model as loaded, so it names no quantisation where that was undone."""

    model: Module
    tokenizer: TokenizerWrapper
    config: dict[str, Any]
    folder: Path


def load_base(folder: Path) -> LoadedBase:
    """Load model and tokenizer, evaluated.

    Raises MissingError when the folder or its weights are not there, RefusedError when it wants to run its own code,
    AfsError for malformed weights or an architecture that mlx-lm does not know.
    """
    check_weights(folder)
    try:
        model, config = load_model(folder, lazy=True, trust_remote_code=False)
        tokenizer = load_tokenizer(
            folder, {"trust_remote_code": False, "local_files_only": True}, eos_token_ids=config.get("eos_token_id")
        )
        if mx.default_device() == mx.cpu:
            model = _in_float32(model)
            config = {key: value for key, value in config.items() if key not in QUANTIZATION_KEYS}
        mx.eval(model.parameters())
    except (ValueError, TypeError, KeyError, AttributeError, OSError, RuntimeError, ImportError) as error:
        raise AfsError(f"mlx-lm cannot load this base: {_first_line(error)}", str(folder), AGAIN) from error
    return LoadedBase(model, tokenizer, config, folder)


def check_weights(folder: Path) -> list[Path]:
    """Check everything but the numbers, reading headers only; returns the weight files."""
    if not folder.is_dir():
        raise MissingError("there is no model folder", str(folder), "run afs-mlx pull BASE, or check the path")
    config = read_json(folder / "config.json", "the base's config.json")
    if "model_file" in config:
        raise RefusedError(
            f"the base brings its own code ({config['model_file']!r}), which is never run",
            str(folder / "config.json"),
            "use a base of an architecture that mlx-lm knows",
        )
    if not isinstance(config.get("model_type"), str):
        raise AfsError("model_type is missing", str(folder / "config.json"), AGAIN)
    shards = sorted(folder.glob("model*.safetensors"))
    if not shards:
        raise MissingError("the folder holds no model*.safetensors", str(folder), AGAIN)
    found: list[str] = []
    tensors = {shard.name: _tensor_names(shard, found) for shard in shards}
    _check_index(folder, tensors, found)
    if found:
        raise problems(found, "the base's weights are damaged or incomplete", str(folder), AGAIN)
    return shards


def greedy_tokens(base: LoadedBase, prompt: list[int], max_tokens: int) -> list[int]:
    """The most probable continuation, up to and with an end token."""
    tokens: list[int] = []
    for token, _ in generate_step(mx.array(prompt), base.model, max_tokens=max_tokens):
        tokens.append(int(token))
        if tokens[-1] in base.tokenizer.eos_token_ids:
            break
    return tokens


def greedy(base: LoadedBase, prompt: str, max_tokens: int) -> str:
    """The most probable continuation of a prompt that already has its chat markup, without the end token."""
    tokens = greedy_tokens(base, base.tokenizer.encode(prompt, add_special_tokens=False), max_tokens)
    if tokens and tokens[-1] in base.tokenizer.eos_token_ids:
        tokens.pop()
    return str(base.tokenizer.decode(tokens))


def verify_base(folder: Path) -> LoadedBase:
    """Load the embedded base and compare its answer to one question with what llama.cpp answers from the same GGUF."""
    base = load_base(folder)
    question = [{"role": "user", "content": smollm2.GOLDEN_QUESTION}]
    prompt = base.tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    prompt_ids = base.tokenizer.encode(prompt, add_special_tokens=False)
    answer_ids = greedy_tokens(base, prompt_ids, len(smollm2.GOLDEN_ANSWER_IDS))
    found = [
        f"{what}: got {got}, expected {expected}"
        for what, got, expected in (
            ("prompt tokens", prompt_ids, list(smollm2.GOLDEN_PROMPT_IDS)),
            ("answer tokens", answer_ids, list(smollm2.GOLDEN_ANSWER_IDS)),
        )
        if got != expected
    ]
    if found:
        fix = f"delete the folder and run afs-mlx pull {smollm2.BASE_ID} again; if it stays, report this with your chip"
        error = problems(found, "the converted base does not answer as it should", str(folder), fix)
        raise WrongAnswerError(error.what, error.where, error.fix)
    return base


def _in_float32(model: Module) -> Module:
    model = dequantize_model(model)
    model.apply(lambda weight: weight.astype(mx.float32) if mx.issubdtype(weight.dtype, mx.floating) else weight)
    return model


def _tensor_names(shard: Path, found: list[str]) -> set[str]:
    try:
        with safe_open(shard, framework="numpy") as file:
            names = set(file.keys())
    except (SafetensorError, OSError) as error:
        found.append(f"{shard.name}: not a whole safetensors file: {_first_line(error)}")
        return set()
    if not names:
        found.append(f"{shard.name}: holds no tensors")
    return names


def _check_index(folder: Path, tensors: dict[str, set[str]], found: list[str]) -> None:
    """With an index, every tensor must lie in the shard it names, and no file may be left over."""
    if not (folder / INDEX_NAME).exists():
        return
    weight_map = read_json(folder / INDEX_NAME, "the list of weight files").get("weight_map")
    if not isinstance(weight_map, dict):
        found.append(f"{INDEX_NAME}: weight_map is missing")
        return
    for shard in sorted({str(shard) for shard in weight_map.values()}):
        if shard not in tensors:
            found.append(f"{shard}: named in {INDEX_NAME}, but not there")
        elif tensors[shard]:
            lost = sorted(name for name, where in weight_map.items() if where == shard and name not in tensors[shard])
            found.extend(f"{shard}: {name} is missing" for name in lost)
    found.extend(
        f"{shard}: not named in {INDEX_NAME}" for shard in sorted(set(tensors) - {str(s) for s in weight_map.values()})
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
