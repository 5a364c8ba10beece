"""The checks of an exported GGUF: they pass for what is right, and each fault is found by the check made for it."""

import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import gguf
import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from afs_mlx.core.errors import AfsError
from afs_mlx.engine.gguf import export_gguf
from afs_mlx.engine.gguf.verification import demand, llama, verify_gguf, verifying
from afs_mlx.engine.gguf.verification.agreement import Effort, Measured, check_greedy, check_log_probabilities
from afs_mlx.engine.gguf.verification.conversations import CONVERSATIONS
from afs_mlx.engine.gguf.verification.corpus import corpus
from afs_mlx.engine.gguf.verification.reference import log_probabilities, on_cpu
from afs_mlx.engine.gguf.verification.tolerances import TOLERANCES, Tolerance
from afs_mlx.schema.gguf import GGUF_TYPES, GgufType
from afs_mlx.schema.verification import Check, Verification

pytestmark = pytest.mark.slow

type Fields = dict[str, Any]
type Tensors = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def f32(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_gguf(tiny_base, tmp_path_factory.mktemp("gguf") / "f32.gguf", "f32", name="tiny").path


def statuses(verification: Verification) -> dict[str, str]:
    return {check.name: check.status for check in verification.checks}


def rewritten(
    path: Path, out: Path, fields: Callable[[Fields], Any] = dict, tensors: Callable[[Tensors], Any] = dict
) -> Path:
    """The F32 file at `path` with other metadata or numbers, whole and well formed."""
    reader = GGUFReader(path)
    values = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    kinds = {name: field.types for name, field in reader.fields.items()}
    numbers = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    fields(values)
    tensors(numbers)
    writer = GGUFWriter(out, values.pop("general.architecture"))
    for name, value in values.items():
        main, *inner = kinds[name]
        writer.add_key_value(name, value, main, inner[-1] if inner else None)
    for name, array in numbers.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


# What is right passes


@pytest.mark.parametrize("file_type", GGUF_TYPES)
def test_every_type_passes(tiny_base: Path, tmp_path: Path, file_type: GgufType) -> None:
    path = export_gguf(tiny_base, tmp_path / "model.gguf", file_type, name="tiny").path
    heard: list[Check] = []
    verification = verify_gguf(path, tiny_base, file_type, on_event=heard.append)
    print(*heard, sep="\n")
    assert not verification.failed, verification.failed
    assert verification.complete
    assert tuple(heard) == verification.checks
    assert [check.name for check in heard] == ["structure", "tensors", *verifying.CONSUMER_CHECKS]
    greedy = heard[-1]
    assert greedy.status == ("passed" if file_type in ("f32", "f16", "bf16") else "reported")
    assert greedy.figures["prompts"] == 4
    assert verification.consumer.startswith("xllamacpp ")
    assert Verification.model_validate_json(verification.model_dump_json()) == verification


def test_a_copied_file_is_still_right(f32: Path, tiny_base: Path, tmp_path: Path) -> None:
    """So that the faults below are the only difference."""
    assert verify_gguf(rewritten(f32, tmp_path / "copy.gguf"), tiny_base, "f32").passed


@pytest.mark.parametrize("file_type", ["f16", "bf16"])
def test_twenty_prompts_of_64_tokens(tiny_base: Path, tmp_path: Path, file_type: GgufType) -> None:
    path = export_gguf(tiny_base, tmp_path / "model.gguf", file_type, name="tiny").path
    verification = verify_gguf(path, tiny_base, file_type, depth="thorough")
    figures = {check.name: check.figures for check in verification.checks}
    print(file_type, figures["log-probabilities"], figures["greedy"])
    assert verification.passed, verification.failed
    assert figures["greedy"]["prompts"] == 20
    assert figures["greedy"]["tokens each"] == 64
    assert figures["tokens"]["strings"] >= 2000  # type: ignore[operator]
    assert figures["chat template"]["conversations"] >= 30  # type: ignore[operator]
    assert figures["tensors"]["numbers compared"] == figures["tensors"]["numbers"]
    if file_type != "bf16":
        assert figures["greedy"]["identical"] == 20


def test_a_quantised_folder_is_compared_as_it_is_unpacked(tiny_base: Path, tmp_path: Path) -> None:
    mlx_lm.convert(str(tiny_base), str(tmp_path / "model"), quantize=True, q_bits=4, q_group_size=32)
    path = export_gguf(tmp_path / "model", tmp_path / "model.gguf", "f32", name="tiny").path
    verification = verify_gguf(path, tmp_path / "model", "f32")
    assert verification.passed, verification.failed


# What is wrong is found, by the check made for it


def zeroed(tensors: Tensors) -> None:
    for name in tensors:
        if name.endswith(("attn_q.bias", "attn_k.bias")):
            tensors[name][:] = 0


def permuted(tensors: Tensors) -> None:
    """As Llama wants q, and Qwen2 does not."""
    rows = np.arange(64).reshape(4, 2, 8).swapaxes(1, 2).reshape(-1)
    for name in tensors:
        if name.endswith("attn_q.weight"):
            tensors[name] = np.ascontiguousarray(tensors[name][rows])


def flipped(tensors: Tensors) -> None:
    tensors["blk.2.ffn_up.weight"].view(np.uint8)[5, 30] ^= 0x40


def nan(tensors: Tensors) -> None:
    tensors["blk.1.attn_v.weight"][3, 4] = np.nan


def extra(tensors: Tensors) -> None:
    tensors["blk.0.attn_q.scale"] = np.ones(1, np.float32)
    del tensors["blk.3.attn_k.bias"]


FAULTS: dict[str, tuple[Callable[[Fields], Any], Callable[[Tensors], Any], set[str], str]] = {
    "another pre-tokenizer": (
        lambda f: f.update({"tokenizer.ggml.pre": "gpt-2"}),
        dict,
        {"tokens"},
        "strings differ",
    ),
    "no pre-tokenizer": (lambda f: f.pop("tokenizer.ggml.pre"), dict, {"structure", "tokens"}, "pre: missing"),
    "another rotation": (
        lambda f: f.update({"qwen2.rope.freq_base": 10000.0}),
        dict,
        {"structure", "log-probabilities"},
        "rope.freq_base: 10000.0, the model has 1000000",
    ),
    "no end token": (
        lambda f: f.pop("tokenizer.ggml.eos_token_id"),
        dict,
        {"structure"},
        "eos_token_id: missing",
    ),
    "another end token": (
        lambda f: f.update({"tokenizer.ggml.eos_token_id": 70}),
        dict,
        {"structure"},
        "eos_token_id: 70, the model ends with",
    ),
    "another chat template": (
        lambda f: f.update({"tokenizer.chat_template": f["tokenizer.chat_template"].replace("'\\n'", "' '", 1)}),
        dict,
        {"structure", "chat template"},
        "conversations differ",
    ),
    "biases dropped": (dict, zeroed, {"tensors", "log-probabilities"}, "blk.0.attn_q.bias: 64 numbers are not"),
    "q permuted": (dict, permuted, {"tensors", "log-probabilities"}, "blk.0.attn_q.weight"),
    "flipped bytes": (dict, flipped, {"tensors"}, "blk.2.ffn_up.weight: 1 numbers are not what F32 makes"),
    "NaN": (dict, nan, {"tensors", "log-probabilities"}, "blk.1.attn_v.weight: 1 numbers are NaN or infinite"),
    "tensors": (dict, extra, {"structure", "log-probabilities"}, "blk.3.attn_k.bias: missing"),
    "tokens moved": (
        lambda f: f["tokenizer.ggml.tokens"].insert(300, f["tokenizer.ggml.tokens"].pop(301)),
        dict,
        {"structure", "tokens"},
        "2 tokens differ, the first is 300",
    ),
    "a control token made plain": (
        lambda f: f["tokenizer.ggml.token_type"].__setitem__(641, int(gguf.TokenType.NORMAL)),
        dict,
        {"tokens"},
        "<|im_start|>",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(f32: Path, tiny_base: Path, tmp_path: Path, fault: str) -> None:
    fields, tensors, by, message = FAULTS[fault]
    path = rewritten(f32, tmp_path / "wrong.gguf", fields, tensors)
    verification = verify_gguf(path, tiny_base, "f32")
    found = {check.name for check in verification.failed}
    assert by <= found, verification
    assert message in " ".join(check.reason for check in verification.failed)
    with pytest.raises(AfsError, match="not what the model folder is") as caught:
        demand(verification, path)
    assert all(name in str(caught.value) for name in found)


def test_a_file_of_another_type_is_found(f32: Path, tiny_base: Path) -> None:
    structure = verify_gguf(f32, tiny_base, "q8_0").checks[0]
    assert structure.status == "failed"
    assert "type F32, Q8_0 is due" in structure.reason


@pytest.mark.parametrize("damage", ["empty", "cut", "no magic", "wild counts"])
def test_a_damaged_file_is_found(f32: Path, tiny_base: Path, tmp_path: Path, damage: str) -> None:
    whole = f32.read_bytes()
    wild = whole[:8] + (2**62).to_bytes(8, "little") + whole[16:]
    data = {"empty": b"", "cut": whole[:-5000], "no magic": b"GGML" + whole[4:], "wild counts": wild}[damage]
    (tmp_path / "damaged.gguf").write_bytes(data)
    verification = verify_gguf(tmp_path / "damaged.gguf", tiny_base, "f32")
    found = statuses(verification)
    assert found["structure"] == "failed"
    assert found["loading"] == "failed"
    assert found["tensors"] == found["greedy"] == "not run"
    assert next(check for check in verification.checks if check.name == "greedy").reason == "loading failed"


def test_another_model_s_file_is_found(f32: Path, tiny_base: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_base, other)
    weights = mx.load(str(other / "model.safetensors"))
    weights["model.layers.0.mlp.up_proj.weight"] = weights["model.layers.0.mlp.up_proj.weight"] * 1.01
    mx.save_safetensors(str(other / "model.safetensors"), weights)
    assert {"tensors", "log-probabilities"} <= {check.name for check in verify_gguf(f32, other, "f32").failed}


# A consumer that is not there, crashes or hangs


def test_without_llama_cpp_its_checks_are_not_run(f32: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "consumer_version", lambda: "")
    verification = verify_gguf(f32, tiny_base, "f32")
    found = statuses(verification)
    assert found == {"structure": "passed", "tensors": "passed"} | dict.fromkeys(verifying.CONSUMER_CHECKS, "not run")
    assert "pip install 'afs-mlx[verify]'" in verification.checks[-1].reason
    assert verification.passed
    assert not verification.complete


def script(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str) -> None:
    """Run this instead of llama.cpp."""
    (folder / "llama_process.py").write_text(text)
    monkeypatch.setattr(llama, "SCRIPT", folder / "llama_process.py")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import sys, time; time.sleep(60)", "did not load the file within 1 s"),
        ("import sys; sys.exit('no such file')", r"did not load the file \(exit 1\): no such file"),
        ("import os; os.abort()", r"did not load the file \(signal 6\)"),
    ],
)
def test_a_consumer_that_does_not_start(
    f32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, reason: str
) -> None:
    script(monkeypatch, tmp_path, text)
    with pytest.raises(llama.LlamaError, match=reason):
        llama.Llama(f32, 64, timeout_s=1.0)


SERVER = """
import http.server, os, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        {}
    def log_message(self, *_): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
os.write(1, f"http://127.0.0.1:{{server.server_port}}\\n".encode())
server.serve_forever()
"""


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("print('GGML_ASSERT failed', file=sys.stderr); os.abort()", r"\(signal 6\): GGML_ASSERT failed"),
        ("time.sleep(60)", "did not answer /tokenize within 1 s"),
        ("self.send_response(200); self.end_headers(); self.wfile.write(b'<html>')", "what is no JSON"),
        (
            'self.send_response(500); self.end_headers(); self.wfile.write(b\'{"error": {"message": "too long"}}\')',
            "refused /tokenize: too long",
        ),
    ],
)
def test_a_consumer_that_breaks_off(
    f32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, reason: str
) -> None:
    script(monkeypatch, tmp_path, SERVER.format(answer))
    with llama.Llama(f32, 64, timeout_s=1.0) as server, pytest.raises(llama.LlamaError, match=reason):
        server.post("/tokenize", {"content": "a"})


def test_a_crash_fails_the_check_that_was_running(
    f32: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, tmp_path, SERVER.format("os.abort()"))
    verification = verify_gguf(f32, tiny_base, "f32")
    found = statuses(verification)
    assert found["loading"] == "passed"
    assert found["tokens"] == "failed"
    assert found["chat template"] == found["greedy"] == "not run"


def test_no_process_is_left_behind(f32: Path) -> None:
    with llama.Llama(f32, 64) as server:
        process = server._process
        assert process.poll() is None
        assert server.post("/tokenize", {"content": "a"})["tokens"]
    assert process.poll() is not None


# The parts


def test_the_corpus_is_large_varied_and_the_same_every_time() -> None:
    texts = corpus(["<|im_start|>", "<tool_call>"])
    assert texts == corpus(["<|im_start|>", "<tool_call>"])
    assert len(set(texts)) == len(texts) >= 2000
    assert all(unicodedata.is_normalized("NFC", text) for text in texts)
    scripts = {unicodedata.name(character, "none").split()[0] for text in texts for character in text}
    assert {"LATIN", "CYRILLIC", "GREEK", "ARABIC", "HEBREW", "CJK", "HIRAGANA", "HANGUL", "THAI"} <= scripts
    for part in ("LDA #$0000", "<tool_call>", "<|im_start|>", "👍🏽", "\r\n", "def factorial"):
        assert sum(part in text for text in texts) > 1


def test_the_conversations_have_every_shape() -> None:
    assert len({conversation.name for conversation in CONVERSATIONS}) == len(CONVERSATIONS) >= 30
    turns = [turn for conversation in CONVERSATIONS for turn in conversation.messages]
    assert {turn["role"] for turn in turns} == {"system", "user", "assistant", "tool"}
    assert max(sum(turn["role"] == "tool" for turn in c.messages) for c in CONVERSATIONS) >= 3
    assert any(c.messages[-1]["role"] == "assistant" and not c.opens_answer for c in CONVERSATIONS)
    assert any(not turn["content"] for turn in turns)


def test_the_reference_is_mlx_s_own_answer(tiny_base: Path) -> None:
    """Layer by layer it is the same arithmetic."""
    sequences = [[5, 6, 7, 8, 9, 10], [300]]
    with on_cpu():
        rows = list(log_probabilities(tiny_base, sequences, [2, 0]))
        model, _ = mlx_lm.load(str(tiny_base))
        for tokens, start, found in zip(sequences, [2, 0], rows, strict=True):
            logits = model(mx.array([tokens]))[0]
            expected = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))[start:]
            assert found.shape == expected.shape
            assert np.abs(found - expected).max() < 1e-5


def test_the_reference_puts_the_device_back(tiny_base: Path) -> None:
    before = mx.default_device()
    with pytest.raises(RuntimeError, match="broke off"), on_cpu():
        raise RuntimeError("broke off")
    assert mx.default_device() == before


def test_a_first_difference_counts_as_equal_only_within_rounding() -> None:
    from afs_mlx.engine.gguf.verification.agreement import Divergence

    effort, asserted = Effort(1, 2, 4, 1), Tolerance(1.0, 1.0, greedy=True)
    found = Measured(prompts=2, differences=[0.01, 0.02], tokens=8)
    found.divergences = [Divergence(0, 1, 0.039, "near"), Divergence(1, 2, 0.041, "far")]
    check = check_greedy(found, asserted, effort)
    assert check.status == "failed"
    assert (check.figures["equal within rounding"], check.figures["different"]) == (1, 1)
    assert "prompt 2, token 3: far" in check.reason
    assert "near" not in check.reason
    assert check_greedy(found, Tolerance(1.0, 1.0), effort).status == "reported"
    found.divergences.pop()
    assert check_greedy(found, asserted, effort).status == "passed"


def test_nan_is_beyond_every_tolerance() -> None:
    check = check_log_probabilities(Measured(differences=[float("nan")]), Tolerance(1e9, 1e9))
    assert check.status == "failed"
    assert check_log_probabilities(Measured(), Tolerance(1e9, 1e9)).status == "failed"


def test_every_type_has_a_tolerance() -> None:
    assert set(TOLERANCES) == set(GGUF_TYPES) == set(get_args(GgufType.__value__))


# The embedded base


@pytest.fixture(scope="module")
def adapted(smollm2_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded base with a LoRA of noise on every linear layer fused in, each update 2 % of its weight."""
    folder = tmp_path_factory.mktemp("smollm2") / "fused"
    shutil.copytree(smollm2_base, folder)
    rng = np.random.default_rng(4)
    weights = mx.load(str(folder / "model.safetensors"))
    for name, weight in weights.items():
        if "proj.weight" in name:
            rank_a, rank_b = rng.standard_normal((8, weight.shape[1])), rng.standard_normal((weight.shape[0], 8))
            update = (rank_b @ rank_a).astype(np.float32)
            scale = 0.02 * float(mx.linalg.norm(weight.astype(mx.float32))) / float(np.linalg.norm(update))
            weights[name] = weight.astype(mx.float32) + mx.array(scale * update)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    record = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**record, "weights_sha256": ""}))
    return folder


@pytest.mark.smollm2
@pytest.mark.parametrize("file_type", ["f16", "q8_0"])
def test_the_embedded_base_with_an_adapter(adapted: Path, tmp_path: Path, file_type: GgufType) -> None:
    path = export_gguf(adapted, tmp_path / "model.gguf", file_type, name="SmolLM2 with an adapter").path
    verification = verify_gguf(path, adapted, file_type, depth="thorough")
    print(verification.model_dump_json(indent=1))
    assert verification.passed, verification.failed
    figures = {check.name: check.figures for check in verification.checks}
    assert (figures["greedy"]["prompts"], figures["greedy"]["tokens each"]) == (20, 64)
    assert figures["tokens"]["strings"] >= 2000  # type: ignore[operator]
    assert figures["chat template"]["conversations"] >= 30  # type: ignore[operator]
