"""llama.cpp as the consumer of a GGUF, in this process, and mlx beside it in float32 on the CPU."""

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import xllamacpp
from mlx_lm.models.cache import make_prompt_cache
from tokenizers import Tokenizer

TOKENS = 24
EXACT = 0.001  # max |Δ log p| where only the order of additions differs; f16 and q8_0 round weights and activations
PROMPTS = ("LDA #$10\nSTA $2100", "Explain the register INIDISP.", "def f(x):\n    return x + 1\n", "é 日本語 12345")

Post = Callable[[str, dict[str, Any]], dict[str, Any]]


def llama_cpp(path: Path) -> Post:
    """Load a file with llama.cpp; the returned function posts to its server."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx, parameters.n_parallel, parameters.cpuparams.n_threads = 512, 1, 1
    # Its cache is f16 otherwise, and hides how exact the file is.
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    # On a Mac, too: its GPU multiplies float32 in half precision.
    parameters.n_gpu_layers, parameters.no_op_offload, parameters.no_kv_offload = 0, True, True
    parameters.warmup, parameters.use_jinja, parameters.verbosity = False, True, -1
    server = xllamacpp.Server(parameters)

    def post(route: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            server.listening_address + route, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            result: dict[str, Any] = json.load(answer)
        return result

    return post


def generate(post: Post, ids: list[int]) -> list[int]:
    """llama.cpp's greedy tokens."""
    body = {"prompt": ids, "n_predict": TOKENS, "temperature": 0, "return_tokens": True, "cache_prompt": False}
    tokens: list[int] = post("/completion", body)["tokens"]
    return tokens


def greedy(model: Any, ids: list[int], ends: set[int]) -> list[int]:
    """mlx's greedy tokens."""
    cache, tokens, fed = make_prompt_cache(model), list[int](), ids
    while len(tokens) < TOKENS and not (tokens and tokens[-1] in ends):
        tokens.append(int(mx.argmax(model(mx.array([fed]), cache=cache)[0, -1]).item()))
        fed = tokens[-1:]
    return tokens


def difference(post: Post, model: Any, ids: list[int], tokens: list[int]) -> float:
    """The largest difference of log-probabilities over the whole vocabulary, before every third of `tokens`."""
    logits = model(mx.array([ids + tokens]))[0].astype(mx.float32)
    expected = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    worst = 0.0
    for taken in range(0, len(tokens), 3):
        # The bias makes it choose a plain letter: it reports nothing for a token that ends within a character. What it
        # reports is from before the bias.
        body = {"prompt": ids + tokens[:taken], "n_predict": 1, "temperature": 0, "n_probs": expected.shape[1]}
        body["logit_bias"] = [["a", 1000]]
        entries = post("/completion", body)["completion_probabilities"][0]["top_logprobs"]
        assert len(entries) == expected.shape[1]
        row = expected[len(ids) + taken - 1]
        worst = max(worst, *(abs(entry["logprob"] - float(row[entry["id"]])) for entry in entries))
    return worst


def compare(folder: Path, path: Path) -> tuple[bool, float]:
    """Whether llama.cpp and mlx in float32 say the same greedily, and the largest difference of log-probabilities."""
    model, tokenizer = mlx_lm.load(str(folder))
    model.set_dtype(mx.float32)
    post = llama_cpp(path)
    same, worst = True, 0.0
    for prompt in PROMPTS:
        ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(prompt).ids
        tokens = generate(post, ids)
        same = same and tokens == greedy(model, ids, set(tokenizer.eos_token_ids))
        worst = max(worst, difference(post, model, ids, tokens))
    return same, worst
