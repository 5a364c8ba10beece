"""A script of its own: llama.cpp's log-probabilities of the next token, with an adapter on a base. Nothing of ours.

`python -I adapter_process.py BASE.gguf ADAPTER.gguf PROMPTS.json FOUND.json`: prompts are lists of token ids; found has
token id → log-probability for each. A crash in here is no crash of the command.
"""

import json
import secrets
import sys
import urllib.request


def main() -> None:
    """Load both, ask for every prompt's next token, write all of them."""
    import xllamacpp

    base, adapter, prompts_file, out = sys.argv[1:5]
    with open(prompts_file) as file:  # noqa: PTH123  # as little as can be is imported here
        prompts = json.load(file)
    parameters = xllamacpp.CommonParams()
    parameters.model.path = base
    parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(adapter, 1.0)]
    key = secrets.token_hex(16)
    parameters.api_keys = [key]
    parameters.n_ctx, parameters.n_parallel = 256, 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 2
    # Its cache is f16 otherwise, and a Mac's GPU multiplies float32 in half precision: both hide how exact it is.
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.n_gpu_layers, parameters.no_op_offload, parameters.no_kv_offload = 0, True, True
    parameters.warmup, parameters.verbosity = False, 1
    server = xllamacpp.Server(parameters)
    found = [_next(server.listening_address, key, ids) for ids in prompts]
    with open(out, "w") as file:  # noqa: PTH123
        json.dump(found, file)


def _next(address: str, key: str, ids: list[int]) -> dict[int, float]:
    # The bias makes it choose a plain letter: it reports nothing for a token that ends within a character. What it
    # reports is from before the bias.
    body = {"prompt": ids, "n_predict": 1, "temperature": 0, "n_probs": 1 << 20, "logit_bias": [["a", 1000]]}
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"{address}/completion", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as answer:
        entries = json.load(answer)["completion_probabilities"][0]["top_logprobs"]
    return {entry["id"]: entry["logprob"] for entry in entries}


if __name__ == "__main__":
    main()
