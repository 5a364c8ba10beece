"""What of an adapter survives fusing to 4 bits: ours beside `mlx_lm.fuse`, the same adapter, in one process.

First a random Qwen2 of 512 wide and 4 deep, and random updates of a given share of the weights' standard deviation.
Then the embedded base with an adapter trained on it, whole and at a tenth, on held-out rows: noise on random weights
says little of what a model answers. `survival` is ⟨ΔŴ, ΔW⟩ / ⟨ΔW, ΔW⟩, the median over the layers, read from the
folders; agreement is that with the same base + adapter. Last the peak memory of fusing, each side in its own process.
"""

import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import afs_mlx.engine  # noqa: F401  (OpenBLAS before mlx)

SHARES = (0.005, 0.01, 0.03)
RANK = 8
SIZES = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4, "vocab_size": 704}
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 2}
BITS, GROUP = 4, 64


def make_bases(folder: Path) -> tuple[Path, Path]:
    """The bfloat16 original, and what mlx_lm.convert makes of it."""
    import mlx.core as mx
    from mlx_lm.models.qwen2 import Model, ModelArgs
    from mlx_lm.utils import save_config, save_model

    from afs_mlx.engine.bases.tiny_qwen2 import build_tiny_qwen2

    original, repack = folder / "original", folder / "4bit"
    build_tiny_qwen2(original)
    config = {**json.loads((original / "config.json").read_text()), **SIZES, **HEADS, "torch_dtype": "bfloat16"}
    mx.random.seed(0)
    model = Model(ModelArgs.from_dict(config))
    # mlx draws them evenly, trained weights are bell-shaped.
    model.apply(lambda weight: mx.random.normal(weight.shape) * 0.02 if weight.ndim == 2 else weight)
    model.set_dtype(mx.bfloat16)
    save_model(original, model)
    save_config(dict(config), original / "config.json")
    return original, make_repack(original, repack)


def make_repack(original: Path, repack: Path) -> Path:
    """What mlx_lm.convert makes of a model: bfloat16, then 4 bits."""
    import mlx.core as mx
    from mlx_lm.utils import load_model, quantize_model, save_config, save_model

    shutil.copytree(original, repack, dirs_exist_ok=True)
    model, config = load_model(original)
    model.set_dtype(mx.bfloat16)
    model, config = quantize_model(model, config, group_size=GROUP, bits=BITS)
    save_model(repack, model)
    save_config(config, repack / "config.json")
    return repack


def make_adapter(original: Path, folder: Path, share: float) -> Path:
    """Noise of rank 8 on every linear layer of every block."""
    import mlx.core as mx
    import numpy as np

    from afs_mlx.engine.adapters.format import AdapterConfig, LoraParameters, write_adapter
    from afs_mlx.engine.adapters.linears import base_linears

    rng = np.random.default_rng(1)
    base = base_linears(original)
    weights = mx.load(str(original / "model.safetensors"))
    tensors: dict[str, Any] = {}
    for path, (outputs, inputs) in base.shapes.items():
        a, b = rng.normal(size=(inputs, RANK)), rng.normal(size=(RANK, outputs))
        b *= share * np.array(weights[f"{path}.weight"].astype(mx.float32)).std() / (a @ b).std()
        tensors |= {f"{path}.lora_a": a.astype(np.float32), f"{path}.lora_b": b.astype(np.float32)}
    keys = tuple(sorted({path.split(".", 3)[3] for path in base.shapes}))
    parameters = LoraParameters(rank=RANK, scale=1.0, dropout=0.0, keys=keys)
    write_adapter(folder, tensors, AdapterConfig(num_layers=base.layers, lora_parameters=parameters))
    return folder


def stock(base: Path, adapter: Path, target: Path) -> None:
    """mlx_lm.fuse, its steps without its command line."""
    from mlx.utils import tree_unflatten
    from mlx_lm.utils import load_adapters, load_model, save_config, save_model

    model, config = load_model(base)
    load_adapters(model, str(adapter))
    fused = [(name, module.fuse()) for name, module in model.named_modules() if hasattr(module, "fuse")]
    model.update_modules(tree_unflatten(fused))
    save_model(target, model)
    save_config(config, target / "config.json")


def survival(base: Path, adapter: Path, found: Path) -> float:
    """The median over the layers, computed from the folders alone."""
    import mlx.core as mx
    import numpy as np

    tensors = mx.load(str(adapter / "adapters.safetensors"))
    scale = json.loads((adapter / "adapter_config.json").read_text())["lora_parameters"]["scale"]
    before, after = _weights(base), _weights(found)
    kept = []
    for name in tensors:
        if name.endswith("lora_a"):
            path = name.removesuffix(".lora_a")
            wanted = scale * np.array((tensors[name] @ tensors[f"{path}.lora_b"]).T, np.float64)
            kept.append(((after(path) - before(path)) * wanted).sum() / (wanted**2).sum())
    return float(np.median(kept))


def _weights(folder: Path) -> Any:
    import mlx.core as mx
    import numpy as np

    weights = mx.load(str(folder / "model.safetensors"))
    config = json.loads((folder / "config.json").read_text()).get("quantization", {})

    def read(path: str) -> Any:
        weight = weights[f"{path}.weight"]
        if weight.dtype != mx.uint32:
            return np.array(weight.astype(mx.float32))
        form = config.get(path, config)
        scales, biases = (weights[f"{path}.{part}"].astype(mx.float32) for part in ("scales", "biases"))
        return np.array(mx.dequantize(weight, scales, biases, form["group_size"], form["bits"]))

    return read


def compare(bases: tuple[Path, Path], adapter: Path, words: str, rows: Any, folder: Path) -> None:
    """One block of the table: every way of fusing one adapter."""
    from afs_mlx.engine.adapters.attaching import load_with_adapter
    from afs_mlx.engine.bases.loading import load_base
    from afs_mlx.engine.fusing.agreement import agreement, expected
    from afs_mlx.engine.fusing.fusion import fuse
    from afs_mlx.engine.fusing.options import StorageOptions

    original, repack = bases
    ways: tuple[tuple[str, Path, StorageOptions | None], ...] = (
        ("mlx_lm.fuse on the 4-bit base", repack, None),
        ("ours, 4-bit base, 4 bits throughout", repack, StorageOptions(quantize="4", changed="same")),
        ("ours, 4-bit base, changed layers at 8 (default)", repack, StorageOptions(quantize="4")),
        ("ours, original there, 4 bits throughout", original, StorageOptions(quantize="4")),
    )
    for way, base, options in ways:
        target = folder / "fused"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
            if (original / name).is_file():
                shutil.copyfile(original / name, target / name)
        if options is None:
            stock(base, adapter, target)
        else:
            fuse(base, adapter, target, options)
        found = agreement(expected(load_with_adapter(base, adapter), rows), load_base(target))
        size = (target / "model.safetensors").stat().st_size / 1e6
        kept = survival(base, adapter, target)
        print(f"fusing: {words:<12}  {way:<48}{size:>6.1f}{kept:>10.1%}{found.kl:>11.2e}{found.top1:>8.1%}", flush=True)


def trained(folder: Path) -> None:
    """The same with the embedded base and an adapter that learnt from the optimisation rows."""
    from afs_mlx.core.paths import Workspace, cache_folder
    from afs_mlx.dataset.reading import read_examples
    from afs_mlx.engine.adapters.format import AdapterConfig, LoraParameters, write_adapter
    from afs_mlx.engine.bases.loading import load_base
    from afs_mlx.engine.training import lora, trainer
    from afs_mlx.engine.training.rows import tokenise
    from afs_mlx.experts.catalog import Catalog
    from afs_mlx.schema.recipe import Recipe

    original = cache_folder() / "bases" / "smollm2-135m"
    if not original.is_dir():
        print("fusing: the embedded base is not here (afs-mlx pull smollm2-135m), so no trained adapter is compared")
        return
    system = Catalog.load(Workspace.find()).choose("din").system
    path = Path(__file__).parents[1] / "data" / "curated" / "din-v2.jsonl"
    examples = [example.with_system(system) for example in read_examples(path)[::2]]
    base, recipe = (
        load_base(original),
        Recipe(rank=16, alpha=32, layers=8, epochs=1, batch_tokens=256, learning_rate=1e-3),
    )
    rows, few = (tokenise(part, base.tokenizer, recipe, "rows") for part in (examples[8:72], examples[:8]))
    keys = lora.attach(base.model, recipe)
    trainer.train(base.model, recipe, rows, few, lambda _: None, lambda: False)
    tensors = lora.adapter_weights(base.model)
    repack = make_repack(original, folder / "smollm2-4bit")
    for strength in (1.0, 0.1):
        parameters = LoraParameters(rank=16, scale=2.0 * strength, dropout=0.0, keys=tuple(keys))
        adapter = folder / f"trained-{strength}"
        write_adapter(adapter, _numpy(tensors), AdapterConfig(num_layers=8, lora_parameters=parameters))
        compare((original, repack), adapter, f"trained x{strength:g}", examples[:8], folder)


def _numpy(tensors: Any) -> Any:
    import numpy as np

    return {name: np.array(array) for name, array in tensors.items()}


def make_wide(folder: Path) -> None:
    """A bfloat16 base of some 400 MB and an adapter for it."""
    import mlx.core as mx
    from mlx_lm.models.qwen2 import Model, ModelArgs
    from mlx_lm.utils import save_config, save_model

    from afs_mlx.engine.bases.tiny_qwen2 import build_tiny_qwen2

    original = folder / "wide"
    build_tiny_qwen2(original)
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 12, "vocab_size": 32_000}
    config = {**json.loads((original / "config.json").read_text()), **sizes, **HEADS}
    model = Model(ModelArgs.from_dict(config))
    model.set_dtype(mx.bfloat16)
    save_model(original, model)
    save_config(config, original / "config.json")
    make_adapter(original, folder / "adapter", 0.01)


def memory(folder: Path, side: str) -> None:
    """Fuse the wide base into bfloat16 and tell how far the process grew."""
    import mlx_lm.models.qwen2
    import mlx_lm.utils  # noqa: F401  (what importing takes is no part of it)

    from afs_mlx.engine.fusing.fusion import fuse

    target = folder / side
    target.mkdir()
    before, began = peak_bytes(), time.perf_counter()
    if side == "ours":
        fuse(folder / "wide", folder / "adapter", target)
    else:
        stock(folder / "wide", folder / "adapter", target)
    print(json.dumps({"grown_bytes": peak_bytes() - before, "elapsed_s": time.perf_counter() - began}))


def peak_bytes() -> int:
    """The most memory this process has held; Linux's ru_maxrss starts at what its parent held."""
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """The two tables, then memory."""
    from afs_mlx.schema.example import Example
    from afs_mlx.schema.message import Message

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"fusing: {'update':<12}  {'way':<48}{'MB':>6}{'survival':>10}{'KL':>11}{'top-1':>8}")
        bases = make_bases(folder)
        question = Message(role="user", content="Clear $10.")
        rows = [
            Example(messages=(question, Message(role="assistant", content=f"stz ${n:02x} " * 20)))
            for n in range(16, 24)
        ]
        for share in SHARES:
            adapter = make_adapter(bases[0], folder / f"adapter-{share}", share)
            compare(bases, adapter, f"{share:.1%} of std", rows, folder)
        trained(folder)
        make_wide(folder)
        command = [sys.executable, "-m", "benchmarks.fusing", name]
        done = {
            side: json.loads(subprocess.run([*command, side], capture_output=True, text=True, check=True).stdout)
            for side in ("ours", "peer")
        }
        mine, other = done["ours"], done["peer"]
        size = (folder / "wide" / "model.safetensors").stat().st_size
        ours, peer = (f"{side['grown_bytes'] / 1e6:.0f} MB ({side['elapsed_s']:.1f} s)" for side in (mine, other))
        ratio = mine["grown_bytes"] / other["grown_bytes"]
        print(f"fusing: a bfloat16 base of {size / 1e6:.0f} MB: we grow by {ours}, mlx_lm.fuse by {peer}: {ratio:.2f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        memory(Path(sys.argv[1]), sys.argv[2])
    else:
        main()
