"""What a training step costs against rows, row length and trained layers, ours beside mlx-lm's loss; writes the chart.

    python -m benchmarks.training_costs        measures and writes docs/training-costs.svg

SmolLM2-135M, one micro-batch of about 1,024 tokens, a third of them answers, the later of two times counts. The frozen
blocks of ours are outside the step; their one pass is in the first panel, three epochs over that many rows.
"""

import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

CHART = Path(__file__).parents[1] / "docs" / "training-costs.svg"
TOKENS = 1024
EPOCHS = 3
ROWS = (8, 16, 32, 64)
LENGTHS = (64, 128, 256, 512, 1024)
LAYERS = (1, 2, 4, 8, 16, 30)
SIDES = {"afs-mlx": "#0a7d55", "mlx-lm": "#b3541e"}


def _base() -> Any:
    import_module("afs_mlx.engine")  # OpenBLAS before mlx
    from afs_mlx.core.paths import cache_folder
    from afs_mlx.engine.bases.loading import load_base

    return load_base(cache_folder() / "bases" / "smollm2-135m").model


def _rows(count: int, length: int) -> list[Any]:
    from afs_mlx.engine.training.rows import Row

    rng = np.random.default_rng(0)
    weights = (np.arange(length) >= length * 2 // 3).astype(np.float32)
    return [Row(rng.integers(1000, 40_000, length).astype(np.int32), weights) for _ in range(count)]


def _timed(work: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def ours(rows: int, length: int, layers: int) -> tuple[float, float]:
    """Seconds of a step over all rows, and of the frozen blocks' pass over them."""
    model = _base()
    import mlx.core as mx

    from afs_mlx.engine.training import lora
    from afs_mlx.engine.training.compute.losses import Losses
    from afs_mlx.schema.recipe import Recipe

    recipe = Recipe(rank=8, alpha=16, layers=layers, batch_tokens=TOKENS)
    lora.attach(model, recipe)
    data = _rows(rows, length)
    losses = Losses(model, recipe, data, None, "")
    began = time.perf_counter()
    losses.prepare(lambda _: None)
    frozen_s = time.perf_counter() - began
    batch = losses.batch(range(rows))
    parameters = model.trainable_parameters()
    return _timed(lambda: mx.eval(losses.loss_and_gradients(parameters, batch, mx.random.key(0)))), frozen_s


def stock(rows: int, length: int, layers: int) -> tuple[float, float]:
    """Seconds of mlx-lm's loss and gradient over all rows."""
    model = _base()
    import mlx.core as mx
    import mlx.nn as nn
    from mlx_lm.tuner.trainer import default_loss
    from mlx_lm.tuner.utils import linear_to_lora_layers

    model.freeze()
    linear_to_lora_layers(model, layers, {"rank": 8, "scale": 2.0, "dropout": 0.0})
    model.train()
    batch = mx.array(np.stack([row.tokens for row in _rows(rows, length)]))
    spans = mx.array([[length * 2 // 3, length - 1]] * rows)
    gradient = nn.value_and_grad(model, default_loss)
    return _timed(lambda: mx.eval(gradient(model, batch, spans))), 0.0


def measured() -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Panel → side → (x, seconds)."""
    panels: dict[str, dict[str, list[tuple[int, float]]]] = {}
    length = 128
    for side, step in (("afs-mlx", ours), ("mlx-lm", stock)):
        seconds, frozen_s = step(TOKENS // length, length, 8)
        # A training is as many equal steps as its rows fill.
        points = [(n, (EPOCHS * seconds + frozen_s) * n * length / TOKENS) for n in ROWS]
        panels.setdefault(f"rows of {length} tokens: seconds for {EPOCHS} epochs, top 8", {})[side] = points
        by_length = [(n, step(TOKENS // n, n, 8)[0]) for n in LENGTHS]
        panels.setdefault("tokens of a row: seconds a step, top 8", {})[side] = by_length
        by_layers = [(n, step(TOKENS // length, length, n)[0]) for n in LAYERS]
        panels.setdefault("trained layers of 30: seconds a step", {})[side] = by_layers
    return panels


def chart(panels: dict[str, dict[str, list[tuple[int, float]]]]) -> str:
    """Three panels side by side, both axes from zero."""
    width, height, left, top = 300, 220, 42, 40
    parts = []
    for index, (title, sides) in enumerate(panels.items()):
        x0 = index * (width + 40) + left
        most_x = max(x for points in sides.values() for x, _ in points)
        most_y = max(y for points in sides.values() for _, y in points) * 1.05
        parts.append(f'<text x="{x0}" y="{top - 14}">{title}</text>')
        parts.append(f'<path d="M{x0} {top}v{height}h{width}" fill="none" stroke="#888"/>')
        for share in (0.25, 0.5, 0.75, 1.0):
            y = top + height * (1 - share)
            parts.append(f'<text x="{x0 - 4}" y="{y + 4:.0f}" text-anchor="end">{most_y * share:.3g}</text>')
        for x in sorted({x for points in sides.values() for x, _ in points}):
            middle, below = x0 + width * x / most_x, top + height + 14
            parts.append(f'<text x="{middle:.0f}" y="{below}" text-anchor="middle">{x}</text>')
        for side, points in sides.items():
            places = [(x0 + width * x / most_x, top + height * (1 - y / most_y)) for x, y in points]
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{SIDES[side]}" stroke-width="2"/>')
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{SIDES[side]}"/>' for x, y in places]
    for index, (side, colour) in enumerate(SIDES.items()):
        parts.append(f'<text x="{left + 110 * index}" y="{top + height + 40}" fill="{colour}">● {side}</text>')
    box = f"0 0 {len(panels) * (width + 40) + left} {top + height + 56}"
    style = "text{font:11px sans-serif}"
    body = "\n".join(parts)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}"><style>{style}</style>'
    return f"{head}\n{body}\n</svg>\n"


def main() -> None:
    """Measure, print, draw."""
    panels = measured()
    for title, sides in panels.items():
        for side, points in sides.items():
            shown = ", ".join(f"{x}: {y:.2f}" for x, y in points)
            print(f"training costs, {title}, {side}: {shown}", flush=True)
    CHART.write_text(chart(panels), encoding="utf-8")


if __name__ == "__main__":
    main()
