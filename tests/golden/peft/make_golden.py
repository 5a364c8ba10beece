"""Makes the golden PEFT adapters and PyTorch's logits for them. Runs in an environment of its own, with torch and peft.

Two commands, from the repository's root; the first in the project's environment, the second in one made with
`pip install torch transformers peft safetensors numpy`:

    .venv/bin/python -c "from pathlib import Path; from afs_mlx.engine.bases.tiny_qwen2 import build_tiny_qwen2; \
        build_tiny_qwen2(Path('/tmp/tiny-qwen2'), seed=0)"
    TORCH_ENV/bin/python tests/golden/peft/make_golden.py --base /tmp/tiny-qwen2

Writes, beside this file, one PEFT folder per adapter, logits.npz (tokens, base and one array per adapter, each
(tokens, vocabulary) float32) and meta.json (versions, the base's sha256 and sums, each adapter's effect and settings).
"""

import argparse
import hashlib
import json
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
ALL_SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BASE_NAME = "golden/tiny-qwen2"

# name: (LoraConfig settings, type on disk). Between them: names and a regex, both scales, all types, gaps.
ADAPTERS = {
    "qv-r4": ({"r": 4, "lora_alpha": 8, "lora_dropout": 0.05, "target_modules": ["q_proj", "v_proj"]}, torch.float32),
    "seven-r8-rslora": ({"r": 8, "lora_alpha": 12, "use_rslora": True, "target_modules": ALL_SEVEN}, torch.float32),
    "layers-1-3-bf16": (
        {"r": 6, "lora_alpha": 9, "target_modules": ["o_proj", "down_proj"], "layers_to_transform": [1, 3]},
        torch.bfloat16,
    ),
    "regex-f16": (
        {"r": 3, "lora_alpha": 7, "target_modules": r".*layers\.(1\.self_attn\.k_proj|[23]\.mlp\.gate_proj)"},
        torch.float16,
    ),
}
TOKENS = [641, 72, 101, 260, 17, 300, 410, 9, 55, 640, 599, 128, 333, 4, 702, 215]
LEAST_EFFECT = 0.1


def logits(model: torch.nn.Module) -> np.ndarray:
    """(tokens, vocabulary) float32 of the fixed sequence."""
    model.eval()
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0].numpy()


def load_base(folder: Path) -> torch.nn.Module:
    """A fresh base in float32 with the plain attention, which is the exact one."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def make_adapter(base: Path, name: str, settings: dict, dtype: torch.dtype, seed: int) -> np.ndarray:
    """Save an adapter of noise with PEFT, and return the logits of PEFT loading what it saved."""
    torch.manual_seed(seed)
    model = get_peft_model(load_base(base), LoraConfig(task_type="CAUSAL_LM", **settings))
    model.peft_config["default"].base_model_name_or_path = BASE_NAME
    state = {}
    for key, value in model.state_dict().items():
        if "lora_" in key:
            # B is zero in a new adapter, which would prove nothing.
            state[key] = (torch.randn_like(value) * (0.2 if "lora_B" in key else 0.1)).to(dtype)
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, state_dict=state, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    return logits(PeftModel.from_pretrained(load_base(base), folder))


def main() -> None:
    """Make everything anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="the tiny-qwen2 folder, built with seed 0")
    base = parser.parse_args().base
    arrays = {"base": logits(load_base(base))}
    effects = {}
    for seed, (name, (settings, dtype)) in enumerate(ADAPTERS.items(), start=1):
        arrays[name] = make_adapter(base, name, settings, dtype, seed)
        effects[name] = float(np.abs(arrays[name] - arrays["base"]).max())
        if effects[name] <= LEAST_EFFECT:
            raise SystemExit(f"{name} moves the logits by {effects[name]} only")
    np.savez_compressed(HERE / "logits.npz", tokens=np.array(TOKENS, np.int32), **arrays)
    weights = load_file(base / "model.safetensors")
    meta = {
        "base_sha256": hashlib.sha256((base / "model.safetensors").read_bytes()).hexdigest(),
        # Where another machine's libm rounds a last bit otherwise, the sums still tell the base from another one.
        "base_sums": {name: float(np.abs(array).sum(dtype=np.float64)) for name, array in weights.items()},
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "numpy", "safetensors")},
        "largest_logit": float(np.abs(arrays["base"]).max()),
        "largest_effect_on_logits": effects,
        "adapters": {name: settings | {"dtype": str(dtype)} for name, (settings, dtype) in ADAPTERS.items()},
    }
    (HERE / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
    print(json.dumps(meta, indent=2))


if __name__ == "__main__":
    main()
