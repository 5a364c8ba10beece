"""A LoRA alone as GGUF: llama.cpp with base and adapter says what mlx says with both, and not what the base says."""

import json
import os
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import xllamacpp
from gguf import GGUFReader, GGUFWriter
from safetensors.numpy import load_file, save_file

from afs_mlx.core.errors import AfsError, UsageError
from afs_mlx.core.files import sha256_of
from afs_mlx.engine.adapters.attaching import load_with_adapter
from afs_mlx.engine.adapters.format import AdapterConfig, LoraParameters, write_adapter
from afs_mlx.engine.adapters.linears import base_linears
from afs_mlx.engine.gguf import export_gguf
from afs_mlx.engine.gguf.adapter import export_adapter_gguf

RANK, SCALE = 4, 2.5
SEVEN = tuple(f"self_attn.{x}_proj" for x in "qkvo") + tuple(f"mlp.{x}_proj" for x in ("gate", "up", "down"))
PROMPT = [70, 300, 12, 411, 9, 150, 33, 205]


@pytest.fixture(scope="module", autouse=True)
def cpu() -> Iterator[None]:
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


@pytest.fixture(scope="module")
def bases(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """tiny-qwen2, and a Llama made from it: other weights, no biases, rows of q and k to be reordered, untied."""
    llama = tmp_path_factory.mktemp("bases") / "llama"
    shutil.copytree(tiny_base, llama)
    config = json.loads((llama / "config.json").read_text())
    config |= {"model_type": "llama", "rope_theta": 10000.0, "attention_bias": False, "tie_word_embeddings": False}
    (llama / "config.json").write_text(json.dumps(config))
    weights = load_file(llama / "model.safetensors")
    kept = {name: array for name, array in weights.items() if not name.endswith(".bias")}
    kept["lm_head.weight"] = np.random.default_rng(5).standard_normal(kept["model.embed_tokens.weight"].shape) * 0.1
    save_file({name: array.astype(np.float32) for name, array in kept.items()}, llama / "model.safetensors")
    return {"qwen2": tiny_base, "llama": llama}


def make_adapter(
    folder: Path, base: Path, keys: tuple[str, ...] = SEVEN, scale: float = SCALE, kind: Any = "lora", **extra: Any
) -> Path:
    """Noise on every block's `keys` and on the whole paths among them, the first block's update zero."""
    rng = np.random.default_rng(3)
    tensors: dict[str, Any] = {}
    for path, (rows, columns) in base_linears(base).shapes.items():
        if not path.endswith(keys):
            continue
        tensors[f"{path}.lora_a"] = rng.standard_normal((columns, RANK)).astype(np.float32) * 0.2
        tensors[f"{path}.lora_b"] = rng.standard_normal((RANK, rows)).astype(np.float32) * 0.2
        if ".layers.0." in path:
            tensors[f"{path}.lora_b"][:] = 0
        if kind == "dora":
            tensors[f"{path}.m"] = np.ones(rows, dtype=np.float32)
    folder.mkdir()
    parameters = LoraParameters(rank=RANK, scale=scale, dropout=0.0, keys=keys)
    config = AdapterConfig(fine_tune_type=kind, num_layers=-1, lora_parameters=parameters, **extra)
    write_adapter(folder, tensors, config)
    return folder


def llama_cpp(base: Path, adapter: Path | None) -> np.ndarray[Any, Any]:
    """Log-probabilities over the vocabulary after PROMPT, NaN for a token that llama.cpp does not report."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(base)
    parameters.n_ctx, parameters.n_parallel, parameters.cpuparams.n_threads = 64, 1, 1
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.n_gpu_layers, parameters.no_op_offload, parameters.no_kv_offload = 0, True, True
    parameters.warmup, parameters.verbosity = False, -1
    if adapter is not None:
        parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    server = xllamacpp.Server(parameters)
    body = {"prompt": PROMPT, "n_predict": 1, "temperature": 0, "n_probs": 704, "logit_bias": [["a", 1000]]}
    request = urllib.request.Request(
        server.listening_address + "/completion", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        entries = json.load(answer)["completion_probabilities"][0]["top_logprobs"]
    found = np.full(704, np.nan)
    for entry in entries:
        found[entry["id"]] = entry["logprob"]
    return found


def in_mlx(base: Path, adapter: Path | None) -> np.ndarray[Any, Any]:
    model = load_with_adapter(base, adapter).model
    model.set_dtype(mx.float32)
    logits = model(mx.array([PROMPT]))[0, -1].astype(mx.float32)
    return np.array(logits - mx.logsumexp(logits))


@pytest.mark.parametrize(
    ("kind", "file_type", "tolerance"),
    [("qwen2", "f32", 0.001), ("qwen2", "f16", 0.02), ("llama", "f32", 0.001), ("llama", "f16", 0.02)],
)
def test_llama_cpp_adds_it_as_mlx_does(
    bases: dict[str, Path], tmp_path: Path, kind: str, file_type: Any, tolerance: float
) -> None:
    keys = (*SEVEN, "lm_head") if kind == "llama" else SEVEN
    adapter = make_adapter(tmp_path / "adapter", bases[kind], keys)
    base = export_gguf(bases[kind], tmp_path / "base.gguf", "f32", name="base").path
    report = export_adapter_gguf(adapter, bases[kind], tmp_path / "adapter.gguf", file_type, name="din-v2")
    expected, bare = in_mlx(bases[kind], adapter), in_mlx(bases[kind], None)
    found = llama_cpp(base, report.path)
    apart = float(np.abs(found - expected).max())
    moved = float(np.abs(bare - expected).max())
    print(f"{kind} {file_type}: |Δ log p| {apart:.6f} with the adapter, {moved:.3f} without it")
    assert apart < tolerance
    assert moved > 100 * tolerance


def test_metadata_and_numbers(bases: dict[str, Path], tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", bases["qwen2"])
    heard: list[tuple[int, int]] = []
    report = export_adapter_gguf(
        adapter,
        bases["qwen2"],
        tmp_path / "a.gguf",
        "f32",
        name="din-v2",
        on_tensor=lambda done, total: heard.append((done, total)),
    )
    reader = GGUFReader(report.path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    expected = {
        "general.type": "adapter",
        "general.architecture": "qwen2",
        "general.name": "din-v2",
        "general.file_type": 0,
        "adapter.type": "lora",
        "adapter.lora.alpha": SCALE * RANK,
    }
    assert {key: fields[key] for key in expected} == expected
    weights = load_file(adapter / "adapters.safetensors")
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    blocks = json.loads((bases["qwen2"] / "config.json").read_text())["num_hidden_layers"]
    assert len(tensors) == report.tensors == 2 * 7 * (blocks - 1), "the first block adds nothing and is left out"
    assert heard[-1] == (report.tensors, report.tensors)
    np.testing.assert_array_equal(
        tensors["blk.1.attn_q.weight.lora_a"], weights["model.layers.1.self_attn.q_proj.lora_a"].T
    )
    np.testing.assert_array_equal(
        tensors["blk.1.attn_q.weight.lora_b"], weights["model.layers.1.self_attn.q_proj.lora_b"].T
    )
    assert report.sha256 == sha256_of(report.path)
    assert report.size_bytes == report.path.stat().st_size


def refusal(adapter: Path, base: Path, file_type: Any = "f16") -> str:
    """The error of an export that has to fail, and leave nothing behind."""
    out = adapter.parent / "out" / "a.gguf"
    out.parent.mkdir()
    with pytest.raises(AfsError) as caught:
        export_adapter_gguf(adapter, base, out, file_type, name="x")
    assert list(out.parent.iterdir()) == []
    return str(caught.value)


def test_a_dora_is_refused_by_name(bases: dict[str, Path], tmp_path: Path) -> None:
    text = refusal(make_adapter(tmp_path / "adapter", bases["qwen2"], kind="dora"), bases["qwen2"])
    assert "model.layers.1.self_attn.q_proj.m: magnitudes of a DoRA" in text
    assert "afs-mlx fuse" in text


def test_whole_weights_are_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", bases["qwen2"])
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"fine_tune_type": "full"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    text = refusal(adapter, bases["qwen2"])
    assert "'full'" in text
    assert "afs-mlx fuse" in text


def test_a_peft_folder_is_sent_to_convert(bases: dict[str, Path], tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", bases["qwen2"])
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert "afs-mlx convert" in refusal(adapter, bases["qwen2"])


def test_an_adapter_of_another_base_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", bases["llama"], (*SEVEN, "lm_head"))
    assert "lm_head: the base has no such linear layer" in refusal(adapter, bases["qwen2"])


@pytest.mark.parametrize("scale", [0.0, SCALE])
def test_an_adapter_that_adds_nothing_is_refused(bases: dict[str, Path], tmp_path: Path, scale: float) -> None:
    """An alpha of 0 would be scale 1 to llama.cpp."""
    adapter = make_adapter(tmp_path / "adapter", bases["qwen2"], scale=scale)
    if scale:
        weights = {
            name: array * (not name.endswith("lora_b"))
            for name, array in load_file(adapter / "adapters.safetensors").items()
        }
        save_file(weights, adapter / "adapters.safetensors")
    assert "adds nothing" in refusal(adapter, bases["qwen2"])


def test_numbers_beyond_f16_are_named(bases: dict[str, Path], tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", bases["qwen2"])
    weights = load_file(adapter / "adapters.safetensors")
    weights["model.layers.1.mlp.up_proj.lora_b"][0, 0] = 70000
    save_file(weights, adapter / "adapters.safetensors")
    text = refusal(adapter, bases["qwen2"])
    assert "model.layers.1.mlp.up_proj.lora_b: 70000 is beyond 65504" in text
    assert "(1 problem)" in text
    assert export_adapter_gguf(adapter, bases["qwen2"], tmp_path / "b.gguf", "f32", name="x").path.is_file()


def test_other_types_and_folders_are_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", bases["qwen2"])
    with pytest.raises(UsageError, match="known: f32, f16"):
        export_adapter_gguf(adapter, bases["qwen2"], tmp_path / "a.gguf", "q8_0", name="x")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a folder, not a file"):
        export_adapter_gguf(adapter, bases["qwen2"], tmp_path, "f16", name="x")


def test_an_unknown_architecture_is_named(bases: dict[str, Path], tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", bases["qwen2"])
    shutil.copytree(bases["qwen2"], tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text()) | {"model_type": "mamba"}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    assert "'mamba'" in refusal(adapter, tmp_path / "base")


def test_a_write_that_fails_leaves_the_file_before_it(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, out = make_adapter(tmp_path / "adapter", bases["qwen2"]), tmp_path / "out" / "a.gguf"
    before = export_adapter_gguf(adapter, bases["qwen2"], out, "f16", name="x")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AfsError, match="disk is full"):
        export_adapter_gguf(adapter, bases["qwen2"], out, "f32", name="x")
    assert list(out.parent.iterdir()) == [out]
    assert sha256_of(out) == before.sha256


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_a_full_disk_is_named(bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_adapter(tmp_path / "adapter", bases["qwen2"])

    def onto_a_full_disk(self: GGUFWriter, *words: Any, **options: Any) -> None:
        with Path("/dev/full").open("wb") as full:
            np.zeros(1 << 20, np.uint8).tofile(full)

    monkeypatch.setattr(GGUFWriter, "write_tensors_to_file", onto_a_full_disk)
    with pytest.raises(AfsError, match="the disk is full"):
        export_adapter_gguf(folder, bases["qwen2"], tmp_path / "out" / "a.gguf", "f16", name="a")
    assert list((tmp_path / "out").iterdir()) == []
