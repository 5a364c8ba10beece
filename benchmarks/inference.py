"""One base, six experts: switching, memory, the first token, and an adapter against a fused model, on smollm2-135m.

The adapters are noise of ranks 4 to 16 on different layers: what they say means nothing, what they cost does. Times are
medians; the two sides of a ratio take turns within one process. `python -m benchmarks.inference few` is a short trial.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import afs_mlx.engine  # noqa: F401  (OpenBLAS before mlx)

ATTENTION = tuple(f"self_attn.{name}_proj" for name in "qkvo")
MLP = tuple(f"mlp.{name}_proj" for name in ("gate", "up", "down"))
# rank, scale, keys, last layers (-1: all)
EXPERTS: dict[str, tuple[int, float, tuple[str, ...], int]] = {
    "din": (8, 2.0, (*ATTENTION, *MLP), -1),
    "nayru": (16, 2.0, ("self_attn.q_proj", "self_attn.v_proj"), -1),
    "farore": (16, 2.0, (*ATTENTION, *MLP), 8),
    "veran": (8, 20.0, ATTENTION, 16),
    "majora": (4, 1.0, MLP, -1),
    "farore-afs": (5, 3.3, (*ATTENTION, *MLP), 16),
}
PROMPT_TOKENS = 300
PIECES = ("lda #$00 sta $10 ; clear it. ", "rep #$20 is 16 bits wide. ", "The accumulator holds a byte. ")


def base_folder() -> Path:
    """Where `afs-mlx pull` puts the embedded base."""
    from afs_mlx.core.paths import cache_folder

    return cache_folder() / "bases" / "smollm2-135m"


def make_adapter(folder: Path, kind: tuple[int, float, tuple[str, ...], int], seed: int) -> Path:
    """Noise a tenth as large as the weights that it changes."""
    import numpy as np

    from afs_mlx.engine.adapters.format import AdapterConfig, LoraParameters, write_adapter
    from afs_mlx.engine.adapters.linears import base_linears

    rank, scale, keys, layers = kind
    base, rng = base_linears(base_folder()), np.random.default_rng(seed)
    tensors: dict[str, Any] = {}
    for path, (outputs, inputs) in base.shapes.items():
        _, _, layer, key = path.split(".", 3)
        if key in keys and (layers < 0 or int(layer) >= base.layers - layers):
            a, b = rng.normal(size=(inputs, rank)), rng.normal(size=(rank, outputs))
            b *= 0.01 / (scale * (a @ b).std())
            tensors |= {f"{path}.lora_a": a, f"{path}.lora_b": b}
    parameters = LoraParameters(rank=rank, scale=scale, dropout=0.0, keys=keys)
    write_adapter(folder, tensors, AdapterConfig(num_layers=layers, lora_parameters=parameters))
    return folder


def make_fused(adapter: Path, folder: Path) -> Path:
    """The base with an adapter fused in, as large as the base."""
    import shutil

    from afs_mlx.engine.fusing.fusion import fuse

    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(base_folder() / name, folder / name)
    fuse(base_folder(), adapter, folder)
    return folder


def as_base(folder: Path) -> Any:
    """A folder as the pool takes it."""
    from afs_mlx.engine.bases.location import BaseFolder

    return BaseFolder(folder.name, folder, demo=True)


def conversation(tokens: int, question: str) -> list[Any]:
    """A system text of about so many tokens and a question."""
    from afs_mlx.schema.message import Message

    text = "You are an expert on 65816 assembly. " + "".join(PIECES[n % 3] for n in range(tokens // 10))
    return [Message(role="system", content=text), Message(role="user", content=question)]


def timed_ms(run: Callable[[], object]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    run()
    return (time.perf_counter() - began) * 1000


def switching(adapters: dict[str, Path], fused: Path, switches: int, reloads: int) -> None:
    """A pointer, an expert chosen again with its look at the disk, and a fused model read again."""
    from afs_mlx.engine.bases.loading import load_base
    from afs_mlx.engine.inference.pool import ExpertPool

    with ExpertPool() as pool:
        base = as_base(base_folder())
        voices = [pool.voice(base, adapter) for adapter in adapters.values()]

        def pointer(number: int) -> None:
            with voices[number % len(voices)]._computing():
                pass

        paths = list(adapters.values())
        pointers = [timed_ms(lambda n=n: pointer(n)) for n in range(switches)]
        chosen = [timed_ms(lambda n=n: pool.voice(base, paths[n % len(paths)])) for n in range(switches)]
    with ExpertPool() as pool:
        pool.voice(base)
        read = [timed_ms(lambda path=path: pool.voice(base, path)) for path in paths]
    loads = [timed_ms(lambda: load_base(fused)) for _ in range(reloads)]
    pointer_ms, chosen_ms, read_ms, load_ms = map(statistics.median, (pointers, chosen, read, loads))
    print(
        f"inference: switch by pointer {pointer_ms:.3f} ms (95 %: {sorted(pointers)[int(0.95 * switches)]:.3f}), "
        f"expert chosen again {chosen_ms:.2f} ms, adapter read the first time {read_ms:.0f} ms; fused model read "
        f"{load_ms:.0f} ms: {load_ms / pointer_ms:,.0f} x by pointer, {load_ms / chosen_ms:,.0f} x chosen again",
        flush=True,
    )


def first_token(adapters: dict[str, Path], rounds: int) -> None:
    """Time to the first token of a new conversation, its system text prefilled and not, and mlx-lm's."""
    import mlx.core as mx
    import mlx_lm

    from afs_mlx.engine.inference.pool import ExpertPool
    from afs_mlx.schema.sampling import Sampling

    sampling = Sampling(temperature=0, top_p=1, max_tokens=2)
    adapter = adapters["din"]
    peer, tokenizer = mlx_lm.load(str(base_folder()), adapter_path=str(adapter))[:2]
    times: dict[str, list[float]] = {"prefilled": [], "without": [], "mlx_lm.stream_generate": []}
    with ExpertPool() as pool:
        voice = pool.voice(as_base(base_folder()), adapter)
        talk = conversation(PROMPT_TOKENS, "question 0")
        count = len(voice.prompt_tokens(talk))
        for number in range(rounds + 1):
            talk = conversation(PROMPT_TOKENS, f"question {number}: what does it do?")
            prompt = mx.array(voice.prompt_tokens(talk))
            pool._caches.clear()
            found = {"without": timed_ms(lambda talk=talk: next(voice.stream(talk, sampling)))}
            assert voice.usage is not None
            assert voice.usage.cached_tokens == 0
            pool.warm(voice, talk[:1]).result()
            found["prefilled"] = timed_ms(lambda talk=talk: next(voice.stream(talk, sampling)))
            assert voice.usage.cached_tokens > PROMPT_TOKENS / 2
            found["mlx_lm.stream_generate"] = timed_ms(
                lambda prompt=prompt: next(mlx_lm.stream_generate(peer, tokenizer, prompt, max_tokens=2))
            )
            if number:  # the first round pays for everybody's first time
                for side, value in found.items():
                    times[side].append(value)
    medians = {side: statistics.median(values) for side, values in times.items()}
    print(
        f"inference: first token of a prompt of {count} tokens: "
        + ", ".join(f"{side} {value:.0f} ms" for side, value in medians.items())
        + f": prefilled is {medians['without'] / medians['prefilled']:.1f} x faster",
        flush=True,
    )


def speed(adapters: dict[str, Path], fused: Path, tokens: int, rounds: int) -> None:
    """Tokens a second: bare, fused, adapters of several sizes attached, and mlx-lm with an adapter attached."""
    import mlx.core as mx
    import mlx_lm

    from afs_mlx.engine.inference.pool import ExpertPool
    from afs_mlx.schema.sampling import Sampling

    sampling = Sampling(temperature=0, top_p=1, max_tokens=tokens, context_tokens=8192)
    talk = conversation(30, "Explain the direct page at length.")
    peer, tokenizer = mlx_lm.load(str(base_folder()), adapter_path=str(adapters["din"]))[:2]
    with ExpertPool() as pool:
        base = as_base(base_folder())
        voices = {"bare base": pool.voice(base), "fused": pool.voice(as_base(fused))}
        voices |= {f"{name} attached": pool.voice(base, adapters[name]) for name in ("din", "nayru", "majora")}
        prompt = mx.array(voices["bare base"].prompt_tokens(talk))
        found: dict[str, list[float]] = {}
        for _ in range(rounds):
            for name, voice in voices.items():
                list(voice.stream(talk, sampling))
                if voice.usage is not None:
                    found.setdefault(name, []).append(voice.usage.tokens_per_s)
            began = count = 0.0
            for response in mlx_lm.stream_generate(peer, tokenizer, prompt, max_tokens=tokens):
                began = began or time.perf_counter()
                count = response.generation_tokens
            found.setdefault("mlx-lm, din attached", []).append((count - 1) / (time.perf_counter() - began))
    fastest = statistics.median(found["fused"])
    for name, values in found.items():
        value = statistics.median(values)
        print(f"inference: {name:<22}{value:>7.1f} tokens/s{value / fastest:>7.2f} of fused", flush=True)


def memory(folder: Path, names: list[str]) -> None:
    """Hold the base with these experts, each asked once under a system text; tell what the process holds."""
    import mlx.core as mx

    from afs_mlx.engine.inference.pool import ExpertPool
    from afs_mlx.schema.sampling import Sampling

    with ExpertPool() as pool:
        base = as_base(base_folder())
        for name in names or [""]:
            voice = pool.voice(base, folder / name if name else None)
            talk = conversation(PROMPT_TOKENS, "what?")
            pool.warm(voice, talk[:1]).result()
            list(voice.stream(talk, Sampling(temperature=0, top_p=1, max_tokens=8)))
        mx.clear_cache()
        stats = pool.stats()
        print(json.dumps({"resident": resident_bytes(), "mlx": mx.get_active_memory(), "caches": stats.caches_bytes}))


def resident_bytes() -> int:
    """What the process has in memory now."""
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024
    import os

    shown = subprocess.run(
        ["/bin/ps", "-o", "rss=", "-p", str(os.getpid())], capture_output=True, text=True, check=True
    )
    return int(shown.stdout) * 1024


def memory_beside(folder: Path) -> None:
    """The bare base and the six experts, each in a process of its own."""
    held = {}
    for side, names in (("one", []), ("six", list(EXPERTS))):
        command = [sys.executable, "-m", "benchmarks.inference", "memory", str(folder), *names]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        held[side] = json.loads(done.stdout)
    for key, words in (("resident", "resident memory"), ("mlx", "held by mlx")):
        one, six = held["one"][key], held["six"][key]
        print(
            f"inference: {words} of one base {one / 1e6:.0f} MB, with six experts {six / 1e6:.0f} MB: {six / one:.2f} "
            f"(of it prompt caches {held['six']['caches'] / 1e6:.0f} MB)",
            flush=True,
        )


def main(*, few: bool = False) -> None:
    """The four parts; `few` tries them with small counts."""
    if not base_folder().is_dir():
        print("inference: the embedded base is not here (afs-mlx pull smollm2-135m), so nothing is measured")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        adapters = {
            expert: make_adapter(folder / expert, kind, seed) for seed, (expert, kind) in enumerate(EXPERTS.items())
        }
        fused = make_fused(adapters["din"], folder / "fused")
        switching(adapters, fused, 60 if few else 600, 2 if few else 7)
        memory_beside(folder)
        first_token(adapters, 2 if few else 9)
        speed(adapters, fused, 8 if few else 64, 1 if few else 5)


if __name__ == "__main__":
    if sys.argv[1:2] == ["memory"]:
        memory(Path(sys.argv[2]), sys.argv[3:])
    else:
        main(few=sys.argv[1:] == ["few"])
