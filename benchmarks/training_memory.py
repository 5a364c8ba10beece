"""Peak memory above the weights of one gradient, vocabulary 151,936 and 4,096 tokens, beside mlx-lm's loss.

Random weights in the Qwen2.5-0.5B shape cut to a few blocks; every second token is an answer's, or each one. Each side
in a process of its own. On a CPU in float32; on Metal logits would be half as large on both sides.
"""

import json
import subprocess
import sys
from importlib import import_module
from typing import Any

import numpy as np

VOCABULARY = 151_936
TOKENS = 4096
BLOCKS = 4
CASES = {"8 rows of 512": (8, 2), "8 rows of 512, all learnt": (8, 1), "1 row of 4096": (1, 2)}


def _model() -> Any:
    import_module("afs_mlx.engine")  # OpenBLAS before mlx

    import mlx.core as mx
    from mlx_lm.models import qwen2

    mx.random.seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 896,
        "num_hidden_layers": BLOCKS,
        "intermediate_size": 4864,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "vocab_size": VOCABULARY,
    }
    model = qwen2.Model(qwen2.ModelArgs(model_type="qwen2", **shape))
    mx.eval(model.parameters())
    return model


def _rows(rows: int, every: int) -> list[Any]:
    from afs_mlx.engine.training.rows import Row

    rng = np.random.default_rng(0)
    length = TOKENS // rows
    found = []
    for _ in range(rows):
        weights = np.zeros(length, dtype=np.float32)
        weights[2 if every == 1 else length // every :] = 1
        found.append(Row(rng.integers(1, VOCABULARY, length).astype(np.int32), weights))
    return found


def ours(rows: int, every: int, checkpointed: bool) -> dict[str, float]:
    """Peak and loss of our gradient."""
    model = _model()
    import mlx.core as mx

    from afs_mlx.engine.training import lora
    from afs_mlx.engine.training.compute.losses import Losses
    from afs_mlx.schema.recipe import Recipe

    recipe = Recipe(rank=8, alpha=16, layers=2, batch_tokens=TOKENS, grad_checkpoint=checkpointed)
    lora.attach(model, recipe)
    data = _rows(rows, every)
    held = mx.get_active_memory()
    losses = Losses(model, recipe, data, None, "")
    losses.prepare(lambda _: None)
    mx.reset_peak_memory()
    batch = losses.batch(range(len(data)))
    loss, gradients = losses.loss_and_gradients(model.trainable_parameters(), batch, mx.random.key(0))
    mx.eval(loss, gradients)
    return {"peak_gb": (mx.get_peak_memory() - held) / 1e9, "loss": loss.item() / batch.supervised_tokens}


def stock(rows: int, every: int, checkpointed: bool) -> dict[str, float]:
    """Peak and loss of mlx_lm.tuner.trainer.default_loss with its prompt mask."""
    model = _model()
    import mlx.core as mx
    import mlx.nn as nn
    from mlx_lm.tuner.trainer import default_loss, grad_checkpoint
    from mlx_lm.tuner.utils import linear_to_lora_layers

    model.freeze()
    linear_to_lora_layers(model, 2, {"rank": 8, "scale": 2.0, "dropout": 0.0})
    mx.eval(model.parameters())
    if checkpointed:
        grad_checkpoint(model.layers[0])
    data = _rows(rows, every)
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    batch = mx.array(np.stack([row.tokens for row in data]))
    spans = mx.array([[int(np.argmax(row.supervised)), len(row.tokens) - 1] for row in data])
    (loss, count), gradients = nn.value_and_grad(model, default_loss)(model, batch, spans)
    mx.eval(loss, count, gradients)
    return {"peak_gb": (mx.get_peak_memory() - held) / 1e9, "loss": loss.item()}


def main() -> None:
    """Every case on both sides; prints peaks and their ratio."""
    for name, (rows, every) in CASES.items():
        for checkpointed in (False, True):
            figures = {}
            for side in ("ours", "stock"):
                arguments = [side, str(rows), str(every), str(int(checkpointed))]
                command = [sys.executable, "-m", "benchmarks.training_memory", *arguments]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                figures[side] = json.loads(done.stdout.strip().splitlines()[-1])
            mine, other = figures["ours"], figures["stock"]
            print(
                f"training memory, {name}{', checkpointed' if checkpointed else ''}: {mine['peak_gb']:.2f} GB above "
                f"the weights beside mlx-lm's {other['peak_gb']:.2f}: 1/{other['peak_gb'] / mine['peak_gb']:.1f} "
                f"(losses {mine['loss']:.5f}, {other['loss']:.5f})",
                flush=True,
            )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        side, rows, every, checkpointed = sys.argv[1], *map(int, sys.argv[2:])
        print(json.dumps((ours if side == "ours" else stock)(rows, every, bool(checkpointed))))
    else:
        main()
