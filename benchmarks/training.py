"""Supervised tokens per second of training, beside mlx-lm's own trainer, on the same rows, base, rank and layers.

Each side runs in a process of its own, the two in turn. mlx-lm trains with `mask_prompt`, so that both learn the
answers; its batch size is the one whose batches hold as many tokens as ours.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

ROWS = 32
LAYERS = 8
RANK = 8
EPOCHS = 3
BATCH_ROWS = 4


def ours() -> dict[str, float]:
    """Rows through our trainer."""
    from afs_mlx.engine.training import lora, trainer
    from afs_mlx.engine.training.rows import tokenise
    from afs_mlx.schema.recipe import Recipe

    base, examples = _base_and_rows()
    recipe = Recipe(rank=RANK, alpha=2 * RANK, layers=LAYERS, epochs=EPOCHS, batch_tokens=1024, learning_rate=1e-4)
    rows = tokenise(examples, base.tokenizer, recipe, "rows")
    few = tokenise(examples[:1], base.tokenizer, recipe, "rows")
    lora.attach(base.model, recipe)
    began = time.perf_counter()
    done = trainer.train(base.model, recipe, rows, few, lambda _: None, lambda: False)
    return _figures(done.supervised_tokens_seen, time.perf_counter() - began, done.peak_memory_gb)


def peer() -> dict[str, float]:
    """The same rows through mlx_lm.tuner.trainer.train."""
    import afs_mlx.engine  # noqa: F401  (OpenBLAS before mlx, for the peer as for us)

    base, examples = _base_and_rows()

    import mlx.core as mx
    import mlx.optimizers as optim
    from mlx_lm.tuner.datasets import CacheDataset, ChatDataset
    from mlx_lm.tuner.trainer import TrainingArgs, train
    from mlx_lm.tuner.utils import linear_to_lora_layers

    base.model.freeze()
    linear_to_lora_layers(base.model, LAYERS, {"rank": RANK, "scale": 2.0, "dropout": 0.0})
    data = [{"messages": [message.as_dict() for message in example.messages]} for example in examples]
    seen: list[float] = []

    class Count:
        def on_train_loss_report(self, report: dict[str, float]) -> None:
            seen.append(report["trained_tokens"])

        def on_val_loss_report(self, report: dict[str, float]) -> None:
            return

    steps = EPOCHS * len(data) // BATCH_ROWS
    arguments = TrainingArgs(
        batch_size=BATCH_ROWS,
        iters=steps,
        val_batches=1,
        steps_per_report=steps,
        steps_per_eval=10**9,
        adapter_file="/dev/null",
    )
    mx.reset_peak_memory()
    rows = CacheDataset(ChatDataset(data, base.tokenizer, mask_prompt=True))
    few = CacheDataset(ChatDataset(data[:BATCH_ROWS], base.tokenizer, mask_prompt=True))
    began = time.perf_counter()
    train(base.model, optim.AdamW(1e-4), rows, few, arguments, training_callback=Count())
    return _figures(seen[-1], time.perf_counter() - began, mx.get_peak_memory() / 1e9)


def _figures(tokens: float, elapsed_s: float, peak_gb: float) -> dict[str, float]:
    return {"tokens": tokens, "elapsed_s": elapsed_s, "tokens_per_s": tokens / elapsed_s, "peak_gb": peak_gb}


def _base_and_rows():  # type: ignore[no-untyped-def]
    from afs_mlx.core.paths import Workspace, cache_folder
    from afs_mlx.dataset.reading import read_examples
    from afs_mlx.engine.bases.loading import load_base
    from afs_mlx.experts.catalog import Catalog

    system = Catalog.load(Workspace.find()).choose("din").system
    path = Path(__file__).parents[1] / "data" / "curated" / "din-v2.jsonl"
    # Every sixth row: a mixture of lengths, as in the whole set.
    examples = [example.with_system(system) for example in read_examples(path)[::6]][:ROWS]
    return load_base(cache_folder() / "bases" / "smollm2-135m"), examples


def main() -> None:
    """Both sides in turn, twice; prints the figures and the ratio of each pair."""
    for pair in (1, 2):
        figures = {}
        for side in ("ours", "peer"):
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.training", side], capture_output=True, text=True, check=True
            )
            figures[side] = json.loads(done.stdout.strip().splitlines()[-1])
        mine, other = figures["ours"], figures["peer"]
        print(
            f"training, pair {pair}: {mine['tokens_per_s']:.0f} supervised tokens/s ({mine['elapsed_s']:.0f} s, peak "
            f"{mine['peak_gb']:.2f} GB) beside mlx-lm's {other['tokens_per_s']:.0f} ({other['elapsed_s']:.0f} s, "
            f"{other['peak_gb']:.2f} GB): ratio {mine['tokens_per_s'] / other['tokens_per_s']:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(ours() if sys.argv[1] == "ours" else peer()))
    else:
        main()
