"""How near `afs-mlx train --plan` comes: forecast in one process, the real training in another, peak memory and time.

    python -m benchmarks.planning                   every configuration
    python -m benchmarks.planning top8 long-rows    some of them

On smollm2-135m and a few of din's rows. Ratios are forecast / measured; the load beside them is the machine's over the
last minute at the start of the training: above the number of cores, times say little.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.training import Scenario, _base_and_rows

MEMORY_GOAL, TIME_GOAL = 0.15, 0.20
COMMON: dict[str, Any] = {"rank": 8, "alpha": 16, "epochs": 2, "samples": 1, "checkpoint_steps": 10}


@dataclass(frozen=True)
class Configuration:
    """A training of `rows` rows; `mixed` ones are long, of lognormal length."""

    recipe: dict[str, Any]
    rows: int = 20
    mixed: bool = False


CONFIGURATIONS = {
    "top8": Configuration({"layers": 8}),
    "all": Configuration({"layers": -1}),
    "checkpointed": Configuration({"layers": 8, "grad_checkpoint": True}),
    "not-lean": Configuration({"layers": 8, "speed": {"lean": False}}),
    "accumulated": Configuration({"layers": 16, "batch_tokens": 400, "accumulation": 4}),
    "long-rows": Configuration({"layers": 8, "batch_tokens": 2048, "speed": {"memory_gb": 0.0}}, mixed=True),
}


def _loaded(name: str) -> tuple[Any, Any, Any, Any, Any]:
    """Base with adapters, recipe, both sets, and the validation examples."""
    from afs_mlx.engine.training import lora
    from afs_mlx.engine.training.rows import tokenise
    from afs_mlx.schema.recipe import Recipe

    configuration = CONFIGURATIONS[name]
    scenario = Scenario(layers=0, batch_rows=0, mixed=configuration.mixed, rows=configuration.rows)
    base, train_rows, valid_rows = _base_and_rows(scenario)
    recipe = Recipe.model_validate({**COMMON, **configuration.recipe})
    sets = [tokenise(each, base.tokenizer, recipe, "rows") for each in (train_rows, valid_rows)]
    lora.attach(base.model, recipe)
    return base, recipe, *sets, valid_rows


def foreseen(name: str) -> dict[str, Any]:
    """The forecast, as `--plan` makes it."""
    from afs_mlx.core.paths import cache_folder
    from afs_mlx.engine.training.planning.checking import UNCALIBRATED, foresee, room_before
    from afs_mlx.engine.training.planning.forecast import Job, forecast
    from afs_mlx.engine.training.planning.reading import RowShapes, model_shape

    room = room_before(cache_folder() / "bases" / "smollm2-135m")
    base, recipe, train, valid, _ = _loaded(name)
    began = time.perf_counter()
    found = foresee(base.model, recipe, train.rows, valid.rows, room, lambda _: None)
    elapsed_s = time.perf_counter() - began
    shape = model_shape(base.model)
    job = Job(shape, found.probe, room, RowShapes(base.model, shape, train.rows, valid.rows))
    return {
        "peak": found.forecast.peak_bytes,
        "counted": forecast(job, recipe, UNCALIBRATED).peak_bytes,
        "needed": found.forecast.needed_bytes,
        "time_s": found.forecast.time_s,
        "probe_s": elapsed_s,
        "batches": sum(step.training for step in found.probe.steps),
        "memory_parts": {k: round(v / 1e6) for k, v in found.forecast.memory_parts.items()},
        "time_parts": {k: round(v, 2) for k, v in found.forecast.time_parts.items()},
    }


def measured(name: str) -> dict[str, Any]:
    """The training itself, with checkpoints and samples."""
    from afs_mlx.engine.training import trainer
    from afs_mlx.engine.training.checkpoints import Checkpoints
    from afs_mlx.engine.training.samples import sampler

    base, recipe, train, valid, examples = _loaded(name)
    with tempfile.TemporaryDirectory() as folder:
        around = trainer.Surroundings(
            checkpoints=Checkpoints(Path(folder) / "checkpoints", {}, 2),
            sample=sampler(base.model, base.tokenizer, valid.rows, ["?"] * len(examples), 1, recipe.sample_tokens),
            frozen_folder=Path(folder) / "frozen",
            base_sha256="0",
        )
        stamps: list[tuple[float, str]] = []
        began = time.perf_counter()
        seen = lambda event: stamps.append((time.perf_counter() - began, type(event).__name__))  # noqa: E731
        done = trainer.train(base.model, recipe, train, valid, seen, lambda: False, around)
        elapsed_s = time.perf_counter() - began
    parts: dict[str, float] = {}
    for (before, _), (after, kind) in zip([(0.0, ""), *stamps], stamps, strict=False):
        parts[kind] = round(parts.get(kind, 0.0) + after - before, 2)
    unit = 1 if sys.platform == "darwin" else 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"peak": done.peak_memory_gb * 1e9, "time_s": elapsed_s, "needed": most, "until": parts}


def _in_a_process(side: str, name: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.planning", name, "--side", side]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def compare(name: str, *, details: bool) -> tuple[float, float]:
    """Both sides of one configuration; returns how far peak and time are off."""
    before = os.getloadavg()[0]
    forecast = _in_a_process("forecast", name)
    load = os.getloadavg()[0]
    real = _in_a_process("train", name)
    peak, seconds, process = (forecast[key] / real[key] for key in ("peak", "time_s", "needed"))
    print(
        f"  {name:<14}peak {forecast['peak'] / 1e9:.3f} of {real['peak'] / 1e9:.3f} GB × {peak:.2f} "
        f"(uncalibrated × {forecast['counted'] / real['peak']:.2f}, process × {process:.2f})   "
        f"time {forecast['time_s']:.0f} of {real['time_s']:.0f} s × {seconds:.2f}   "
        f"{forecast['batches']} batches probed in {forecast['probe_s']:.0f} s; load {before:.1f}, {load:.1f}, "
        f"{os.getloadavg()[0]:.1f}",
        flush=True,
    )
    if details:
        print("   ", forecast["memory_parts"], forecast["time_parts"], "\n   ", real["until"], flush=True)
    return abs(peak - 1), abs(seconds - 1)


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", choices=[*CONFIGURATIONS, []])
    parser.add_argument("--side", choices=("forecast", "train"))
    parser.add_argument("--details", action="store_true")
    asked = parser.parse_args(arguments)
    if asked.side:
        print(json.dumps((foreseen if asked.side == "forecast" else measured)(asked.names[0])))
        return
    print("planning: forecast / measured", flush=True)
    found = [compare(name, details=asked.details) for name in asked.names or CONFIGURATIONS]
    for what, goal, errors in zip(("peak", "time"), (MEMORY_GOAL, TIME_GOAL), zip(*found, strict=True), strict=True):
        print(f"  {what}: worst {max(errors):.0%} off, goal {goal:.0%}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
