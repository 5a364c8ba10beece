"""Makes the golden PEFT adapters and PyTorch's logits for them. Runs in an environment of its own, with torch and peft.

Two commands, from the repository's root; the first in the project's environment, the second in one made with
`pip install -r requirements/parity.txt` (`make parity` does both, into another folder, and runs the tests against it):

    .venv/bin/python -c "from pathlib import Path; from afs_mlx.engine.bases.tiny_qwen2 import build_tiny_qwen2; \
        build_tiny_qwen2(Path('/tmp/tiny-qwen2'), seed=0)"
    TORCH_ENV/bin/python tests/golden/peft/make_golden.py --base /tmp/tiny-qwen2

Writes, beside this file or into --out, one PEFT folder per adapter (those of the micro models below micro/), logits.npz
(tokens, each base and one array per adapter, each (tokens, vocabulary) float32) and meta.json (versions, the base's
sha256 and sums, each adapter's base, effect and settings).
"""

import argparse
import copy
import hashlib
import json
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

import bases
import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
ALL_SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TINY = "tiny-qwen2"
QV = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
PATTERNS = {
    "r": 3,
    "lora_alpha": 5,
    "target_modules": ALL_SEVEN,
    "rank_pattern": {"q_proj": 5, "layers.1.mlp.down_proj": 1, r"^model\.layers\.2\..*gate_proj": 4},
    "alpha_pattern": {"v_proj": 11, r"layers\.[01]\.self_attn\.o_proj": 2},
}
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16

# name: (base, LoraConfig settings, type on disk).
ADAPTERS = {
    "qv-r4": (TINY, {"r": 4, "lora_alpha": 8, "lora_dropout": 0.05, "target_modules": ["q_proj", "v_proj"]}, F32),
    "seven-r8-rslora": (TINY, {"r": 8, "lora_alpha": 12, "use_rslora": True, "target_modules": ALL_SEVEN}, F32),
    "layers-1-3-bf16": (
        TINY,
        {"r": 6, "lora_alpha": 9, "target_modules": ["o_proj", "down_proj"], "layers_to_transform": [1, 3]},
        BF16,
    ),
    "regex-f16": (
        TINY,
        {"r": 3, "lora_alpha": 7, "target_modules": r".*layers\.(1\.self_attn\.k_proj|[23]\.mlp\.gate_proj)"},
        F16,
    ),
    "all-linear": ("micro-qwen2", {"r": 2, "lora_alpha": 3, "target_modules": "all-linear"}, F32),
    "output-layer": ("micro-qwen2", {"r": 2, "lora_alpha": 3, "target_modules": ["k_proj", "lm_head"]}, F32),
    "excluded": (
        "micro-qwen2",
        {"r": 2, "lora_alpha": 3, "target_modules": "all-linear", "exclude_modules": ["up_proj"]},
        F32,
    ),
    "patterns": ("micro-qwen2", PATTERNS, F32),
    "patterns-rslora-bf16": ("micro-qwen2", PATTERNS | {"use_rslora": True}, BF16),
    "dora": ("micro-qwen2", {"r": 3, "lora_alpha": 6, "use_dora": True, "target_modules": ALL_SEVEN}, F32),
    "dora-patterns": ("micro-qwen2", PATTERNS | {"use_dora": True}, F32),
    "dora-layers-f16": (
        "micro-qwen2",
        QV | {"use_dora": True, "use_rslora": True, "layers_to_transform": [0, 2]},
        F16,
    ),
    "lora-bias": ("micro-qwen2", QV | {"lora_bias": True}, F32),
    "bias-all": ("micro-qwen2", QV | {"bias": "all"}, F32),
    "bias-lora-only": ("micro-qwen2", QV | {"bias": "lora_only"}, F32),
    "saved-head": ("micro-qwen2", QV | {"modules_to_save": ["lm_head"]}, F32),
    "saved-embeddings-norm": ("micro-qwen2", QV | {"modules_to_save": ["embed_tokens", "norm"]}, F32),
    "saved-linear": ("micro-qwen2", QV | {"modules_to_save": ["o_proj"]}, BF16),
    "saved-tied-embeddings": ("micro-qwen3", QV | {"modules_to_save": ["embed_tokens"]}, F32),
    "lora-embeddings": ("micro-qwen2", QV | {"target_modules": ["q_proj", "embed_tokens"]}, F32),
    "lora-tied-embeddings": ("micro-qwen3", QV | {"target_modules": ["q_proj", "embed_tokens"]}, F32),
    "token-rows": ("micro-qwen2", QV | {"trainable_token_indices": [3, 9]}, F32),
    "token-rows-tied": ("micro-qwen3", QV | {"trainable_token_indices": {"embed_tokens": [3, 9]}}, F32),
    "qwen3-all-linear": ("micro-qwen3", {"r": 2, "lora_alpha": 3, "target_modules": "all-linear"}, F32),
    "qwen3-dora": ("micro-qwen3", {"r": 2, "lora_alpha": 5, "use_dora": True, "target_modules": ALL_SEVEN}, F32),
    "llama-seven-bf16": ("micro-llama", {"r": 2, "lora_alpha": 3, "target_modules": ALL_SEVEN}, BF16),
    "mistral-regex-f16": (
        "micro-mistral",
        {"r": 2, "lora_alpha": 3, "target_modules": r"model\.layers\.\d+\.(self_attn\.[qv]|mlp\.up)_proj"},
        F16,
    ),
    "several-names": ("micro-llama", QV, F32),
    "pickle": ("micro-llama", QV, F32),
    "pickle-raw-bf16": ("micro-llama", QV, BF16),
}
TOKENS = [641, 72, 101, 260, 17, 300, 410, 9, 55, 640, 599, 128, 333, 4, 702, 215]
LEAST_EFFECT = 0.1
SECOND = "second"
TRAINED = ("lora_", "modules_to_save", "token_adapter", ".bias")


def tokens_for(base: str) -> list[int]:
    """The fixed sequence, within the base's vocabulary."""
    return TOKENS if base == TINY else [token % bases.SIZES["vocab_size"] for token in TOKENS]


def logits(model: torch.nn.Module, base: str) -> np.ndarray:
    """(tokens, vocabulary) float32 of the fixed sequence."""
    model.eval()
    with torch.no_grad():
        return model(torch.tensor([tokens_for(base)])).logits[0].numpy()


def load_base(folder: Path) -> torch.nn.Module:
    """A fresh base in float32 with the plain attention, which is the exact one."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def disturb(model: torch.nn.Module, dtype: torch.dtype, trained: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Noise in all that is trained: a new adapter's B is zero and would prove nothing. Returns it by name."""
    state = {}
    for key, value in model.state_dict().items():
        if not any(part in key for part in trained) or "original_module" in key:
            continue
        noise = torch.randn_like(value)
        if "lora_" in key and "magnitude" not in key:
            changed = noise * (0.2 if "lora_B" in key or "embedding_B" in key else 0.1)
        else:
            changed = value * (1 + 0.2 * noise) + 0.05 * torch.randn_like(value)
        state[key] = changed.to(dtype)
    model.load_state_dict({key: value.float() for key, value in state.items()}, strict=False)
    return state


def save(model: torch.nn.Module, name: str, state: dict[str, torch.Tensor], folder: Path, base: str) -> None:
    """Save as PEFT does, or in one of the ways that old versions and training scripts do."""
    for config in model.peft_config.values():
        config.base_model_name_or_path = f"golden/{base}"
    extra = [key for key in state if "token_adapter" in key]
    known = None if extra else {**model.state_dict(), **state}
    model.save_pretrained(folder, state_dict=known, save_embedding_layers=False)
    if name.startswith("pickle"):
        path = folder / "adapter_model.safetensors"
        # One as PEFT wrote it before safetensors, one as scripts do that save a state dict with the names in it.
        saved = {key: value.contiguous() for key, value in state.items()} if "raw" in name else load_file(path)
        path.unlink()
        torch.save(saved, folder / "adapter_model.bin")
    for readme in folder.rglob("README.md"):
        readme.unlink()


def make_adapter(out: Path, folder: Path, name: str, seed: int) -> np.ndarray:
    """Save an adapter of noise with PEFT, and return the logits of PEFT loading what it saved."""
    base, settings, dtype = ADAPTERS[name]
    torch.manual_seed(seed)
    config = LoraConfig(task_type="CAUSAL_LM", **copy.deepcopy(settings))
    model = get_peft_model(load_base(folder), config)
    if name == "several-names":
        model.add_adapter(SECOND, LoraConfig(task_type="CAUSAL_LM", **copy.deepcopy(settings)))
    trained = tuple(part for part in TRAINED if part != ".bias" or settings.get("bias", "none") != "none")
    state = disturb(model, dtype, trained)
    target = out / name if base == TINY else out / "micro" / name
    shutil.rmtree(target, ignore_errors=True)
    save(model, name, state, target, base)
    if name == "pickle-raw-bf16":  # PEFT itself does not read names in the keys
        found = logits(model, base)
    else:
        found = logits(PeftModel.from_pretrained(load_base(folder), target), base)
    return found


def main() -> None:
    """Make everything anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="the tiny-qwen2 folder, built with seed 0")
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folders = {TINY: arguments.base} | {name: Path(temporary) / name for name in bases.BASES}
        for name in bases.BASES:
            bases.build(folders[name], name)
        arrays = {f"base:{name}": logits(load_base(folder), name) for name, folder in folders.items()}
        effects = {}
        for seed, (name, (base, _, _)) in enumerate(ADAPTERS.items(), start=1):
            arrays[name] = make_adapter(arguments.out, folders[base], name, seed)
            effects[name] = float(np.abs(arrays[name] - arrays[f"base:{base}"]).max())
            if effects[name] <= LEAST_EFFECT:
                raise SystemExit(f"{name} moves the logits by {effects[name]} only")
    np.savez_compressed(
        arguments.out / "logits.npz", tokens=np.array(TOKENS, np.int32), base=arrays[f"base:{TINY}"], **arrays
    )
    weights = load_numpy(arguments.base / "model.safetensors")
    meta = {
        "base_sha256": hashlib.sha256((arguments.base / "model.safetensors").read_bytes()).hexdigest(),
        # Where another machine's libm rounds a last bit otherwise, the sums still tell the base from another one.
        "base_sums": {name: float(np.abs(array).sum(dtype=np.float64)) for name, array in weights.items()},
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "numpy", "safetensors")},
        "largest_logit": float(np.abs(arrays[f"base:{TINY}"]).max()),
        "largest_effect_on_logits": effects,
        "adapters": {
            name: settings | {"base": base, "dtype": str(dtype)} for name, (base, settings, dtype) in ADAPTERS.items()
        },
    }
    (arguments.out / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
    print(json.dumps(meta["largest_effect_on_logits"], indent=2))


if __name__ == "__main__":
    main()
