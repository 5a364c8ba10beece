"""Makes the proof that real PEFT loads what `afs-mlx export peft` writes, and computes what mlx does.

Two steps from the repository's root: the adapters are made and exported in the project's environment, loaded in one
made with `pip install torch transformers peft safetensors numpy`:

    .venv/bin/python tests/golden/peft_export/make_golden.py export /tmp/peft-export
    TORCH_ENV/bin/python tests/golden/peft_export/make_golden.py load /tmp/peft-export

The second writes, beside this file, logits.npz (tokens, the base's logits and each adapter's, (tokens, vocabulary)
float32) and meta.json (versions, and for each adapter the hash of the tensors that PEFT loaded and its settings).
It stops where PEFT misses a tensor, ignores one or adapts a layer that is not in the file.
"""

import hashlib
import json
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
TOKENS = [641, 72, 101, 260, 17, 300]
SEVEN = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)
SHAPES = {"model_type": "qwen2", "num_hidden_layers": 4}
FACTS = {"base": {"id": "tiny-qwen2", "lineage": "tiny-qwen2", "shapes": SHAPES}}
# name: (rank, scale, dropout, facts, keys, blocks, layers that stay zero). Between them: with and without our facts,
# all blocks and the last, gaps of a whole block and within one, rsLoRA, DoRA, a scale that no alpha meets.
CASES: dict[str, tuple[Any, ...]] = {
    "plain-mlx-lm": (4, 5.0, 0.0, None, SEVEN, (0, 1, 2, 3), ()),
    "last-two": (3, 7 / 3, 0.05, FACTS | {"alpha": 7.0}, ("self_attn.q_proj", "self_attn.v_proj"), (2, 3), ()),
    "rslora": (6, 9 / 6**0.5, 0.0, FACTS | {"alpha": 9.0, "rslora": True}, ("mlp.down_proj",), (0, 1, 2, 3), ()),
    "block-gap": (2, 0.7, 0.0, FACTS, ("self_attn.o_proj",), (1, 2, 3), ("model.layers.2.self_attn.o_proj",)),
    "uneven": (
        3,
        1.1,
        0.0,
        FACTS,
        ("self_attn.k_proj", "mlp.up_proj"),
        (1, 2, 3),
        ("model.layers.1.mlp.up_proj", "model.layers.3.self_attn.k_proj"),
    ),
    "dora": (4, 2.0, 0.0, FACTS | {"alpha": 8.0}, ("self_attn.q_proj", "mlp.gate_proj"), (0, 1, 2, 3), ()),
}


def make_adapter(name: str, base: Path, folder: Path) -> None:
    """Write the MLX adapter of a case: whole numbers times a constant, so that every machine makes the same."""
    from safetensors.numpy import load_file, save_file

    rank, scale, dropout, facts, keys, blocks, zero = CASES[name]
    weights = load_file(base / "model.safetensors")
    rng = np.random.default_rng(sorted(CASES).index(name))
    tensors: dict[str, np.ndarray] = {}

    def noise(factor: float, *shape: int) -> np.ndarray:
        return rng.integers(-(2**20), 2**20, shape).astype(np.float32) * np.float32(factor / 2**20) + np.float32(
            0
        )  # no -0

    for path in (f"model.layers.{block}.{key}" for block in blocks for key in keys):
        outputs, inputs = weights[f"{path}.weight"].shape
        factor = 0.0 if path in zero else 0.15
        tensors[f"{path}.lora_a"], tensors[f"{path}.lora_b"] = noise(factor, inputs, rank), noise(factor, rank, outputs)
        if name == "dora":
            tensors[f"{path}.m"] = np.float32(1.5) + noise(0.5, outputs)
    config = {
        "fine_tune_type": "dora" if name == "dora" else "lora",
        "num_layers": len(blocks),
        "lora_parameters": {"rank": rank, "scale": scale, "dropout": dropout, "keys": list(keys)},
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapters.safetensors", metadata={"format": "mlx"})
    (folder / "adapter_config.json").write_text(json.dumps(config | ({"afs": facts} if facts else {})))


def tensors_hash(folder: Path) -> str:
    """Of names, types, shapes and numbers, whatever the order in the file."""
    from safetensors import deserialize

    entries = sorted(deserialize((folder / "adapter_model.safetensors").read_bytes()))
    digest = hashlib.sha256()
    for name, entry in entries:
        digest.update(f"{name} {entry['dtype']} {list(entry['shape'])}\n".encode() + bytes(entry["data"]))
    return digest.hexdigest()


def export(work: Path) -> None:
    """The first step, in the project's environment."""
    from afs_mlx.engine.adapters.inspection import read_adapter
    from afs_mlx.engine.adapters.peft_export import export_peft
    from afs_mlx.engine.bases.tiny_qwen2 import build_tiny_qwen2

    build_tiny_qwen2(work / "base", seed=0)
    for name in CASES:
        make_adapter(name, work / "base", work / name / "mlx")
        export_peft(read_adapter(work / name / "mlx"), work / name / "peft", "golden/tiny-qwen2")


def load(work: Path) -> None:
    """The second step, with torch and PEFT."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def base() -> Any:
        return AutoModelForCausalLM.from_pretrained(work / "base", dtype=torch.float32, attn_implementation="eager")

    def logits(model: Any) -> np.ndarray:
        with torch.no_grad():
            return model.eval()(torch.tensor([TOKENS])).logits[0].numpy()

    arrays, facts = {"base": logits(base())}, {}
    for name in CASES:
        folder = work / name / "peft"
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # PEFT only warns of missing keys
            model = PeftModel.from_pretrained(base(), folder)
        with (folder / "adapter_model.safetensors").open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        held = {key.removeprefix("base_model.model.").partition(".lora_")[0] for key in header if key[0] != "_"}
        if set(model.base_model.targeted_module_names) != held:
            raise SystemExit(f"{name}: PEFT adapts {model.base_model.targeted_module_names}, the file holds {held}")
        arrays[name] = logits(model)
        config = model.peft_config["default"]
        facts[name] = {
            "tensors_sha256": tensors_hash(folder),
            "effect_on_logits": float(np.abs(arrays[name] - arrays["base"]).max()),
            "scaling": next(m.scaling["default"] for m in model.modules() if hasattr(m, "lora_A")),
            "layers": len(held),
            "layers_to_transform": config.layers_to_transform,
            "target_modules": sorted(config.target_modules),
        }
    np.savez_compressed(HERE / "logits.npz", tokens=np.array(TOKENS, np.int32), **arrays)
    versions = {name: version(name) for name in ("torch", "transformers", "peft", "numpy", "safetensors")}
    text = json.dumps({"versions": versions, "adapters": facts}, indent=2) + "\n"
    (HERE / "meta.json").write_text(text)
    print(text)


if __name__ == "__main__":
    {"export": export, "load": load}[sys.argv[1]](Path(sys.argv[2]))
