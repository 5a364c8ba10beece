"""Supervised tokens per second of a whole training, beside mlx-lm's own trainer: same base, rows, layers and epochs.

    python -m benchmarks.training                      every scenario, both sides
    python -m benchmarks.training top8 --switches      one scenario, ours with each switch off in turn

Each side runs in a process of its own, with OpenBLAS. mlx-lm trains with `mask_prompt`, so that both learn the
answers, with as many rows a step as ours on average, the same rate and the same AdamW. The whole run counts: what is
computed once, validation, everything but loading the base.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

RANK = 8
RATE = 1e-3
VALID_ROWS = 4
OFF: dict[str, Any] = {
    "lean": False,
    "supervised_head": False,
    "head_chunk": 0,
    "keep_frozen": False,
    "shared_prompt": False,
    "fast_exp": False,
}


@dataclass(frozen=True)
class Scenario:
    """What is trained; `rows` without the validation rows."""

    layers: int
    batch_rows: int
    mixed: bool = False
    rows: int = 24
    epochs: int = 5


SCENARIOS = {
    "top8": Scenario(layers=8, batch_rows=4),
    "all": Scenario(layers=-1, batch_rows=4),
    "mixed": Scenario(layers=8, batch_rows=8, mixed=True, rows=16, epochs=3),
}


def ours(scenario: Scenario, switches: dict[str, Any]) -> dict[str, Any]:
    """Rows through our trainer."""
    from afs_mlx.engine.training import lora, trainer
    from afs_mlx.engine.training.events import Planned, Validated
    from afs_mlx.engine.training.rows import tokenise
    from afs_mlx.schema.recipe import Recipe, Speed

    base, train_rows, valid_rows = _base_and_rows(scenario)
    lengths = [len(row.tokens) for row in tokenise(train_rows, base.tokenizer, Recipe(), "rows").rows]
    recipe = Recipe(
        rank=RANK,
        alpha=2 * RANK,
        layers=scenario.layers,
        epochs=scenario.epochs,
        batch_tokens=round(scenario.batch_rows * (np.mean(lengths) if scenario.mixed else max(lengths))),
        validations_per_epoch=1,
        learning_rate=RATE,
        warmup_fraction=0,
        schedule="constant",
        samples=0,
        speed=Speed(**switches),
    )
    rows, few = (tokenise(each, base.tokenizer, recipe, "rows") for each in (train_rows, valid_rows))
    lora.attach(base.model, recipe)
    seen: list[Any] = []
    began = time.perf_counter()
    done = trainer.train(base.model, recipe, rows, few, seen.append, lambda: False)
    elapsed_s = time.perf_counter() - began
    losses = [event.loss for event in seen if isinstance(event, Validated)]
    steps = next(event.total_steps for event in seen if isinstance(event, Planned))
    return _figures(done.supervised_tokens_seen, elapsed_s, done.peak_memory_gb, steps, losses)


def stock(scenario: Scenario) -> dict[str, Any]:
    """The same rows through mlx_lm.tuner.trainer.train."""
    import afs_mlx.engine  # noqa: F401  (OpenBLAS before mlx, for the peer as for us)

    base, train_rows, valid_rows = _base_and_rows(scenario)

    import mlx.core as mx
    import mlx.optimizers as optim
    from mlx_lm.tuner.datasets import CacheDataset, ChatDataset
    from mlx_lm.tuner.trainer import TrainingArgs, train
    from mlx_lm.tuner.utils import linear_to_lora_layers

    base.model.freeze()
    linear_to_lora_layers(base.model, scenario.layers, {"rank": RANK, "scale": 2.0, "dropout": 0.0})
    counted: list[float] = []
    losses: list[float] = []

    class Count:
        def on_train_loss_report(self, report: dict[str, float]) -> None:
            counted.append(report["trained_tokens"])

        def on_val_loss_report(self, report: dict[str, float]) -> None:
            losses.append(report["val_loss"])

    steps = scenario.epochs * len(train_rows) // scenario.batch_rows
    arguments = TrainingArgs(
        batch_size=scenario.batch_rows,
        iters=steps,
        val_batches=1,
        steps_per_report=steps,
        steps_per_eval=10**9,
        adapter_file="/dev/null",
    )
    mx.reset_peak_memory()
    rows, few = (
        CacheDataset(
            ChatDataset(
                [{"messages": [m.as_dict() for m in e.messages]} for e in each], base.tokenizer, mask_prompt=True
            )
        )
        for each in (train_rows, [*valid_rows, *valid_rows][: scenario.batch_rows])
    )
    began = time.perf_counter()
    train(base.model, optim.AdamW(RATE, bias_correction=True), rows, few, arguments, training_callback=Count())
    return _figures(counted[-1], time.perf_counter() - began, mx.get_peak_memory() / 1e9, steps, losses)


def _figures(tokens: float, elapsed_s: float, peak_gb: float, steps: int, losses: list[float]) -> dict[str, Any]:
    """`steps` of the optimizer; `losses` on the validation rows, first that of the base."""
    rate = tokens / elapsed_s
    return {"tokens_per_s": rate, "elapsed_s": elapsed_s, "peak_gb": peak_gb, "steps": steps, "losses": losses}


def _base_and_rows(scenario: Scenario) -> tuple[Any, list[Any], list[Any]]:
    from afs_mlx.core.paths import Workspace, cache_folder
    from afs_mlx.dataset.reading import read_examples
    from afs_mlx.engine.bases.loading import load_base
    from afs_mlx.experts.catalog import Catalog

    system = Catalog.load(Workspace.find()).choose("din").system
    path = Path(__file__).parents[1] / "data" / "curated" / "din-v2.jsonl"
    examples = [example.with_system(system) for example in read_examples(path)]
    count = scenario.rows + VALID_ROWS
    # Evenly spread: a mixture of families and lengths, as in the whole set.
    rows = [examples[round(i * (len(examples) - 1) / (count - 1))] for i in range(count)]
    if scenario.mixed:
        rows = [_grown(row, examples, number) for number, row in enumerate(rows)]
    few = rows[:: len(rows) // VALID_ROWS][:VALID_ROWS]
    return load_base(cache_folder() / "bases" / "smollm2-135m"), [row for row in rows if row not in few], few


def _grown(example: Any, examples: Sequence[Any], number: int) -> Any:
    """A conversation whose length is lognormal over the rows: more routines in one turn, and their answers."""
    length = float(np.random.default_rng(number).lognormal(5.3, 0.8))
    question, answer = example.messages[-2].content, example.messages[-1].content
    place = number
    while (len(question) + len(answer)) / 2.2 < min(length, 1200):
        place += 17
        other = examples[place % len(examples)]
        question += "\n\n" + other.messages[-2].content
        answer += "\n\n" + other.messages[-1].content
    turns = (
        example.messages[-2].model_copy(update={"content": question}),
        example.messages[-1].model_copy(update={"content": answer}),
    )
    return example.model_copy(update={"messages": (*example.messages[:-2], *turns)})


def _measured(side: str, name: str, rows: int = 0, epochs: int = 0, **switches: Any) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.training", name, "--side", side, "--speed", json.dumps(switches)]
    command += ["--rows", str(rows), "--epochs", str(epochs)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def _line(what: str, figures: dict[str, Any], beside: float) -> None:
    losses = figures["losses"]
    print(
        f"  {what:<28}{figures['tokens_per_s']:7.1f} supervised tokens/s {figures['elapsed_s']:6.0f} s "
        f"{figures['steps']:4d} steps, peak {figures['peak_gb']:.2f} GB, valid loss {losses[0]:.3f} → {losses[-1]:.4f}"
        f"   × {figures['tokens_per_s'] / beside:.2f}",
        flush=True,
    )


def compare(name: str) -> None:
    """Ours beside mlx-lm's; the ratio is to mlx-lm."""
    print(f"training, {name}: {SCENARIOS[name]}", flush=True)
    peer = _measured("stock", name)
    _line("mlx_lm trainer", peer, peer["tokens_per_s"])
    _line("afs-mlx", _measured("ours", name), peer["tokens_per_s"])


def switches(name: str) -> None:
    """Ours with every switch on, with each off, with all off; the ratio is to all on."""
    print(f"training, {name}, switch by switch, 12 rows, 3 epochs", flush=True)
    few = {"rows": 12, "epochs": 3}
    whole = _measured("ours", name, **few)
    _line("all on", whole, whole["tokens_per_s"])
    for switch, off in OFF.items():
        _line(f"without {switch}", _measured("ours", name, **{switch: off}, **few), whole["tokens_per_s"])
    _line("all off", _measured("ours", name, **OFF, **few), whole["tokens_per_s"])
    _line("compiled", _measured("ours", name, compile="on", **few), whole["tokens_per_s"])


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("scenario", nargs="?", choices=SCENARIOS)
    parser.add_argument("--switches", action="store_true")
    parser.add_argument("--side", choices=("ours", "stock"))
    parser.add_argument("--speed", default="{}")
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=0)
    asked = parser.parse_args(arguments)
    if asked.side:
        scenario = SCENARIOS[asked.scenario]
        scenario = replace(scenario, rows=asked.rows or scenario.rows, epochs=asked.epochs or scenario.epochs)
        found = stock(scenario) if asked.side == "stock" else ours(scenario, json.loads(asked.speed))
        print(json.dumps(found))
        return
    for name in [asked.scenario] if asked.scenario else SCENARIOS:
        (switches if asked.switches else compare)(name)


if __name__ == "__main__":
    main(sys.argv[1:])
