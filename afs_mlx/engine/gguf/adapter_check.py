"""An adapter GGUF held against mlx: llama.cpp with base and adapter has to say what mlx says with both."""

import json
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from tokenizers import Tokenizer

from afs_mlx.core.errors import AfsError
from afs_mlx.core.files import read_json
from afs_mlx.core.process import run_limited
from afs_mlx.engine.adapters.attaching import load_with_adapter
from afs_mlx.engine.gguf.source import open_weights
from afs_mlx.engine.gguf.writer import export_gguf
from afs_mlx.schema.verification import Check, Depth, Verification

PACKAGE = "xllamacpp"
PROMPTS = (
    "Optimize this: LDA #$00 : STA $10",
    "What does REP #$30 do?",
    "def add(a, b):\n    return a + b\n",
    "é 日本語 12345 naïve",
)
TOLERANCES = {"f32": 0.005, "f16": 0.05}  # of log p; seen at most: 0.00006 and 0.011
QUICK_BASE_BYTES = 2e9  # a larger base is not written beside the adapter only to check it
TIMEOUT_S = 1800.0

type Floats = np.ndarray[Any, np.dtype[np.float64]]


def check_adapter_gguf(gguf: Path, adapter: Path, base_folder: Path, file_type: str, depth: Depth) -> Verification:
    """Compare the next token's log-probabilities of four prompts, over the whole vocabulary.

    Writes the base as a float32 GGUF beside the adapter, for the time of the check: a base above 2 GB is checked only
    where `depth` is thorough. Raises AfsError where the base cannot be written.
    """
    began = time.monotonic()
    read_back = Check(name="tensors", status="passed", reason="every number read back as it was written")

    def result(consumer: str, check: Check) -> Verification:
        return Verification(
            depth=depth, consumer=consumer, checks=(read_back, check), elapsed_s=time.monotonic() - began
        )

    consumer = _consumer()
    if not consumer:
        return result("", _not_run(f"{PACKAGE} is not installed"))
    weights = open_weights(base_folder, read_json(base_folder / "config.json", "the base's configuration"))
    size_bytes = 4 * sum(int(np.prod(weight.shape)) for weight in weights.values())
    if depth == "quick" and size_bytes > QUICK_BASE_BYTES:
        return result("", _not_run(f"it needs the base as float32 GGUF, {size_bytes / 1e9:.0f} GB for a while"))
    prompts = [Tokenizer.from_file(str(base_folder / "tokenizer.json")).encode(text).ids for text in PROMPTS]
    with tempfile.TemporaryDirectory(dir=gguf.parent, prefix=".check-") as name:
        found = _in_llama_cpp(Path(name), gguf, base_folder, prompts)
    if isinstance(found, str):
        return result(consumer, Check(name="log-probabilities", status="failed", reason=found))
    return result(consumer, _compare(found, adapter, base_folder, prompts, TOLERANCES[file_type]))


def _compare(
    found: list[dict[int, float]], adapter: Path, base_folder: Path, prompts: list[list[int]], tolerance: float
) -> Check:
    apart, moved = 0.0, 0.0
    with_adapter, bare = _in_mlx(base_folder, adapter, prompts), _in_mlx(base_folder, None, prompts)
    for row, expected, base in zip(found, with_adapter, bare, strict=True):
        values = np.full(expected.shape, np.nan)
        ids = [token for token in row if token < len(values)]
        values[ids] = [row[token] for token in ids]
        # np.max keeps a NaN, Python's does not: a token without a number has to fail the check.
        apart = float(np.max([apart, np.abs(values - expected).max()]))
        moved = float(np.max([moved, np.abs(base - expected).max()]))
    figures: dict[str, float | int | str] = {
        "max_difference": apart if np.isfinite(apart) else "NaN",
        "tolerance": tolerance,
        "moved_by_adapter": moved,
        "prompts": len(prompts),
    }
    if not apart <= tolerance:
        reason = f"llama.cpp and mlx differ by {apart:.3g}, tolerated are {tolerance:g}"
        return Check(name="log-probabilities", status="failed", reason=reason, figures=figures)
    if moved < 2 * tolerance:
        reason = f"the adapter moves them by {moved:.3g} only, too little to tell whether it was applied"
        return Check(name="log-probabilities", status="reported", reason=reason, figures=figures)
    return Check(name="log-probabilities", status="passed", figures=figures)


def _in_llama_cpp(
    folder: Path, gguf: Path, base_folder: Path, prompts: list[list[int]]
) -> list[dict[int, float]] | str:
    """Token → log-probability for each prompt, or why llama.cpp gave none."""
    base = export_gguf(base_folder, folder / "base.gguf", "f32", name="base").path
    (folder / "prompts.json").write_text(json.dumps(prompts))
    done = run_limited(
        [
            sys.executable,
            "-I",
            Path(__file__).with_name("adapter_process.py"),
            base.absolute(),
            gguf.absolute(),
            "prompts.json",
            "found.json",
        ],
        cwd=folder,
        timeout_s=TIMEOUT_S,
        cpu_s=int(TIMEOUT_S) * 8,
        memory_bytes=2**46,  # the file is mapped; its size is bounded already
        file_bytes=2**31,
        output_bytes=2**16,
    )
    if done.returncode or not (folder / "found.json").is_file():
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        return "llama.cpp took too long" if done.timed_out else f"llama.cpp: {lines[-1] if lines else done.returncode}"
    rows = json.loads((folder / "found.json").read_text())
    return [{int(token): float(value) for token, value in row.items()} for row in rows]


def _in_mlx(base_folder: Path, adapter: Path | None, prompts: list[list[int]]) -> list[Floats]:
    """The next token's log-probabilities (vocabulary,) of each prompt, in float32 on the CPU."""
    device = mx.default_device()
    mx.set_default_device(mx.cpu)
    try:
        model = load_with_adapter(base_folder, adapter).model
        model.set_dtype(mx.float32)
        rows = [model(mx.array([ids]))[0, -1].astype(mx.float32) for ids in prompts]
        return [np.array(logits - mx.logsumexp(logits)).astype(np.float64) for logits in rows]
    finally:
        mx.set_default_device(device)


def demand(verification: Verification, gguf: Path) -> None:
    """Raise AfsError with every failed check."""
    if verification.failed:
        said = "; ".join(f"{check.name}: {check.reason}" for check in verification.failed)
        raise AfsError(f"the adapter file is wrong and was not kept: {said}", str(gguf), "report this; fuse instead")


def _not_run(reason: str) -> Check:
    return Check(name="log-probabilities", status="not run", reason=reason)


def _consumer() -> str:
    try:
        return f"{PACKAGE} {version(PACKAGE)}"
    except PackageNotFoundError:
        return ""
