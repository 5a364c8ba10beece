"""GGUF export, held against the two that have to agree: mlx, which trained, and llama.cpp, which runs."""

import json
import random
import resource
import tracemalloc
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import mlx_lm
import pytest
from gguf import GGUFReader
from gguf_consumer import EXACT, compare, generate, greedy, llama_cpp
from gguf_models import build_tiny, edit
from tokenizers import Tokenizer

from afs_mlx import __version__
from afs_mlx.core.errors import AfsError
from afs_mlx.core.files import sha256_of
from afs_mlx.engine.bases.tiny_qwen2 import build_tiny_qwen2
from afs_mlx.engine.gguf import FileType, export_gguf
from afs_mlx.engine.gguf.layouts import LAYOUTS, ROPE_FACTORS
from afs_mlx.engine.gguf.shape import read_shape

CONVERSATIONS = (
    [{"role": "user", "content": "hi"}],
    [{"role": "system", "content": "You know 65816."}, {"role": "user", "content": "What is REP #$30?"}],
    [
        {"role": "system", "content": "You know 65816."},
        {"role": "user", "content": "  two\n\nlines "},
        {"role": "assistant", "content": "LDA #$0F\nSTA $2100"},
        {"role": "user", "content": "and then? é"},
    ],
)
TEXTS = (
    "LDA #$10 : STA $2100,x\n\tJSL $0080FF ; comment\n.loop:\n    BNE .loop",
    "1234567890 0x7E 3.14 ½ ² ١٢٣",
    "It's they'll WE'RE I'd'Ve x's",
    "   leading, trailing   \n\n \t \r\n\r\n  end  ",
    "naïve café – “quotes” … 日本語のテキスト 한국어 🙂👍🏽 العربية",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<tool_call>\n{}\n</tool_call><|endoftext|>",
    "<|im_start|> <|im_start <tool_call>x</tool_call> <|unknown|>",
    "a\u00a0b\u3000c\u200bd",
)
PIECES = (*" \t\n'sStLldD019aZ_#$.,:;<>|é日🙂½\r", "<|im_end|>", "  ", "'re", "\n\n", "</tool_call>", "LDA", "１")


@pytest.fixture(scope="module", autouse=True)
def cpu() -> Iterator[None]:
    """The same arithmetic on both sides, on every machine."""
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf") / "qwen2"
    build_tiny_qwen2(folder)
    return folder


@pytest.fixture(scope="module")
def qwen2_f16(qwen2: Path) -> Path:
    return export_gguf(qwen2, qwen2.parent / "f16.gguf", "f16", name="tiny").path


@pytest.fixture
def own_qwen2(tmp_path: Path) -> Path:
    """A folder that a test may damage."""
    build_tiny_qwen2(tmp_path / "model")
    return tmp_path / "model"


# What llama.cpp makes of the file


LAYOUT_CASES: dict[str, dict[str, Any]] = {
    "qwen2": {"family": "qwen2"},
    "qwen2, bf16, untied": {"family": "qwen2", "dtype": "BF16", "tie_word_embeddings": False},
    "qwen3": {"family": "qwen3"},
    "qwen3, untied, heads of the width of the model": {
        "family": "qwen3",
        "tie_word_embeddings": False,
        "head_dim": 16,
        "num_key_value_heads": 4,
    },
    "llama, tied": {"family": "llama", "pre": "smollm"},
    "llama, bf16, untied": {"family": "llama", "dtype": "BF16", "tie_word_embeddings": False},
    "llama, biases, equal heads": {"family": "llama", "attention_bias": True, "num_key_value_heads": 4},
}


@pytest.mark.parametrize("case", LAYOUT_CASES)
def test_every_layout_agrees_with_mlx(tmp_path: Path, case: str) -> None:
    build_tiny(tmp_path / "model", **LAYOUT_CASES[case])
    export_gguf(tmp_path / "model", tmp_path / "model.gguf", "f32", name="tiny")
    agree, worst = compare(tmp_path / "model", tmp_path / "model.gguf")
    print(f"{case}: greedy equal {agree}, max |Δ log p| {worst:.6f}")
    assert worst < EXACT
    assert agree


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_folder_is_dequantised_on_the_way(qwen2: Path, tmp_path: Path, bits: int) -> None:
    mlx_lm.convert(str(qwen2), str(tmp_path / "model"), quantize=True, q_bits=bits, q_group_size=32)
    export_gguf(tmp_path / "model", tmp_path / "model.gguf", "f32", name="tiny")
    agree, worst = compare(tmp_path / "model", tmp_path / "model.gguf")
    print(f"{bits} bits: greedy equal {agree}, max |Δ log p| {worst:.6f}")
    assert worst < EXACT
    assert agree


@pytest.mark.parametrize("pre", ["qwen2", "llama-bpe", "smollm"])
def test_llama_cpp_tokenises_alike(qwen2: Path, qwen2_f16: Path, tmp_path: Path, pre: str) -> None:
    folder, path = qwen2, qwen2_f16
    if pre != "qwen2":
        folder, path = tmp_path / "model", tmp_path / "model.gguf"
        build_tiny(folder, "llama", pre=pre)
        export_gguf(folder, path, "f16", name="tiny")
    tokenizer, post = Tokenizer.from_file(str(folder / "tokenizer.json")), llama_cpp(path)
    rng = random.Random(3)
    noise = ["".join(rng.choices(PIECES, k=rng.randint(1, 24))) for _ in range(150)]
    for text in (unicodedata.normalize("NFC", text) for text in (*TEXTS, *noise)):
        answer = post("/tokenize", {"content": text, "parse_special": True, "add_special": True})
        assert answer["tokens"] == tokenizer.encode(text).ids, repr(text)


def test_a_begin_token_is_added_where_the_tokenizer_adds_one(tmp_path: Path) -> None:
    def begin(rules: dict[str, Any]) -> None:
        number = next(token["id"] for token in rules["added_tokens"] if token["content"] == "<|endoftext|>")
        rules["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [number], "tokens": ["<|endoftext|>"]}},
        }

    folder = tmp_path / "model"
    build_tiny(folder, "llama")
    edit(folder / "tokenizer.json", begin)
    edit(folder / "tokenizer_config.json", lambda settings: settings.update(bos_token="<|endoftext|>"))
    post = llama_cpp(export_gguf(folder, tmp_path / "model.gguf", "f16", name="tiny").path)
    expected = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("LDA").ids
    assert post("/tokenize", {"content": "LDA", "add_special": True})["tokens"] == expected
    assert post("/tokenize", {"content": "LDA", "add_special": False})["tokens"] == expected[1:]


@pytest.mark.parametrize("own_file", [False, True])
def test_llama_cpp_renders_the_chat_template_alike(own_qwen2: Path, tmp_path: Path, own_file: bool) -> None:
    if own_file:
        text = json.loads((own_qwen2 / "tokenizer_config.json").read_text())["chat_template"]
        (own_qwen2 / "chat_template.jinja").write_text(text)
        edit(own_qwen2 / "tokenizer_config.json", lambda settings: settings.pop("chat_template"))
    post = llama_cpp(export_gguf(own_qwen2, tmp_path / "model.gguf", "f16", name="tiny").path)
    _, tokenizer = mlx_lm.load(str(own_qwen2))
    for messages in CONVERSATIONS:
        expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert post("/apply-template", {"messages": messages})["prompt"] == expected


def metadata(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


# The tables, against the gguf package


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama"])
def test_names_agree_with_the_package(qwen2: Path, architecture: str) -> None:
    config = json.loads((qwen2 / "config.json").read_text())
    arch = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    targets = LAYOUTS[architecture].targets(read_shape(config, qwen2, scaled=True))
    assert len(targets) > 40
    for name, (_, target) in targets.items():
        assert names.get_name(name, try_suffixes=(".weight", ".bias")) == target.gguf


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama"])
def test_no_tensor_of_the_architecture_is_forgotten(qwen2: Path, architecture: str) -> None:
    arch = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    shape = read_shape(json.loads((qwen2 / "config.json").read_text()), qwen2, scaled=True)
    written = {target.gguf for _, target in LAYOUTS[architecture].targets(shape).values()} | {ROPE_FACTORS}
    known = {gguf.TENSOR_NAMES[tensor].format(bid=0) for tensor in gguf.MODEL_TENSORS[arch]}
    mixtures = {"blk.0.ffn_gate_inp", "blk.0.ffn_gate_exps", "blk.0.ffn_down_exps", "blk.0.ffn_up_exps"}
    others = {f"blk.0.ffn_{part}.0" for part in ("gate", "down", "up")} | {"blk.0.attn_rot_embd"}
    assert known - mixtures - others - {name.rpartition(".")[0] for name in written} == set()


def test_merges_and_ids_agree_with_the_package(qwen2: Path, qwen2_f16: Path) -> None:
    fields = metadata(qwen2_f16)
    special = gguf.SpecialVocab(qwen2, load_merges=True, n_vocab=704)
    assert fields["tokenizer.ggml.merges"] == special.merges
    assert fields["tokenizer.chat_template"] == special.chat_template
    for kind in ("eos", "pad"):
        key = gguf.Keys.Tokenizer.EOS_ID if kind == "eos" else gguf.Keys.Tokenizer.PAD_ID
        assert fields[key] == special.special_token_ids[kind]


def test_metadata(qwen2: Path, qwen2_f16: Path) -> None:
    fields = metadata(qwen2_f16)
    config = json.loads((qwen2 / "config.json").read_text())
    vocabulary = Tokenizer.from_file(str(qwen2 / "tokenizer.json")).get_vocab()
    expected = {
        "general.architecture": "qwen2",
        "general.name": "tiny",
        "general.file_type": int(gguf.LlamaFileType.MOSTLY_F16),
        gguf.Keys.LLM.CONTEXT_LENGTH.format(arch="qwen2"): config["max_position_embeddings"],
        gguf.Keys.LLM.BLOCK_COUNT.format(arch="qwen2"): config["num_hidden_layers"],
        gguf.Keys.Attention.HEAD_COUNT_KV.format(arch="qwen2"): config["num_key_value_heads"],
        gguf.Keys.Rope.FREQ_BASE.format(arch="qwen2"): 1_000_000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.eos_token_id": vocabulary["<|im_end|>"],
        "tokenizer.ggml.eot_token_id": vocabulary["<|endoftext|>"],
        "tokenizer.ggml.add_bos_token": False,
    }
    assert {key: fields[key] for key in expected} == expected
    types = fields["tokenizer.ggml.token_type"]
    assert len(fields["tokenizer.ggml.tokens"]) == len(types) == config["vocab_size"]
    assert types[vocabulary["<|im_end|>"]] == gguf.TokenType.CONTROL
    assert types[vocabulary["<tool_call>"]] == gguf.TokenType.USER_DEFINED
    assert types[-1] == gguf.TokenType.UNUSED
    assert "output.weight" not in {tensor.name for tensor in GGUFReader(qwen2_f16).tensors}


def test_a_sign_token_that_is_not_special_is_control_all_the_same(own_qwen2: Path, tmp_path: Path) -> None:
    edit(own_qwen2 / "tokenizer.json", lambda rules: rules["added_tokens"][0].update(special=False))
    path = export_gguf(own_qwen2, tmp_path / "model.gguf", "f16", name="tiny").path
    number = Tokenizer.from_file(str(own_qwen2 / "tokenizer.json")).token_to_id("<|endoftext|>")
    assert GGUFReader(path).fields["tokenizer.ggml.token_type"].contents()[number] == gguf.TokenType.CONTROL


def test_report_and_progress(qwen2: Path, tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    report = export_gguf(
        qwen2, tmp_path / "a.gguf", "q8_0", name="tiny", on_tensor=lambda done, total: heard.append((done, total))
    )
    assert heard == [(number, report.tensors) for number in range(1, report.tensors + 1)]
    assert report.sha256 == sha256_of(report.path)
    assert report.size_bytes == report.path.stat().st_size
    assert report.tensors == len(GGUFReader(report.path).tensors)
    again = export_gguf(qwen2, tmp_path / "b.gguf", "q8_0", name="tiny")
    assert again.sha256 == report.sha256


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("manifest.json", '{"license": "apache-2.0"}'),
        ("README.md", "---\nlanguage: en\nlicense: apache-2.0\n---\n# Model\nlicense: none\n"),
    ],
)
def test_the_licence_travels(own_qwen2: Path, tmp_path: Path, file: str, text: str) -> None:
    (own_qwen2 / file).write_text(text)
    path = export_gguf(own_qwen2, tmp_path / "model.gguf", "f16", name="tiny").path
    assert GGUFReader(path).fields["general.license"].contents() == "apache-2.0"


def test_a_licence_with_a_name_and_the_base_of_the_model_card_travel(own_qwen2: Path, tmp_path: Path) -> None:
    head = 'license: other\nlicense_name: "qwen-research"\nlicense_link: ../LICENSE\nbase_model: qwen/base\ntags: [a]'
    (own_qwen2 / "README.md").write_text(f"---\n{head}\n---\n")
    fields = metadata(export_gguf(own_qwen2, tmp_path / "model.gguf", "f16", name="tiny").path)
    assert fields["general.license"] == "other"
    assert fields["general.license.name"] == "qwen-research"
    assert fields["general.license.link"] == "../LICENSE"
    assert fields["general.base_model.count"] == 1
    assert fields["general.base_model.0.name"] == "qwen/base"


@pytest.mark.parametrize("given", [False, True])
def test_what_it_was_made_from_travels(own_qwen2: Path, tmp_path: Path, given: bool) -> None:
    manifest = {
        "made_by": "afs-mlx 0.1.0: fuse",
        "expert": "din",
        "version": "v2",
        "license": "apache-2.0",
        "base": {"id": "tiny-qwen2", "revision": "abc", "weights_sha256": "1" * 64, "fused_into_sha256": "2" * 64},
        "parent": {"run": "v2-tiny-qwen2-20260101-000000", "sha256": "3" * 64},
        "weights_sha256": "4" * 64,
    }
    if not given:
        (own_qwen2 / "manifest.json").write_text(json.dumps(manifest))
    source = manifest if given else None
    fields = metadata(export_gguf(own_qwen2, tmp_path / "model.gguf", "f16", name="tiny", source=source).path)
    expected = {
        "general.finetune": "din",
        "general.version": "v2",
        "general.license": "apache-2.0",
        "general.base_model.count": 1,
        "general.base_model.0.name": "tiny-qwen2",
        "general.base_model.0.version": "abc",
        "general.quantized_by": f"afs-mlx {__version__}",
        "afs_mlx.base.weights_sha256": "1" * 64,
        "afs_mlx.base.fused_into_sha256": "2" * 64,
        "afs_mlx.run": "v2-tiny-qwen2-20260101-000000",
        "afs_mlx.adapter_sha256": "3" * 64,
        "afs_mlx.weights_sha256": "4" * 64,
        "afs_mlx.made_by": "afs-mlx 0.1.0: fuse",
    }
    assert {key: fields.get(key) for key in expected} == expected


def test_a_large_model_is_never_in_memory(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    build_tiny(folder, "llama", hidden_size=256, intermediate_size=2048, num_hidden_layers=8, head_dim=64)
    export_gguf(folder, tmp_path / "first.gguf", "f16", name="tiny")  # what is imported once is not counted
    tracemalloc.start()
    report = export_gguf(folder, tmp_path / "model.gguf", "f16", name="tiny")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < report.size_bytes / 2


# Interrupted or out of space: the old file stays, no half one appears


def test_an_interruption_leaves_the_old_file(qwen2: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    out = tmp_path / "model.gguf"
    out.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        export_gguf(qwen2, out, "f16", name="tiny", on_tensor=interrupt)
    assert out.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [out]


def test_a_full_disk_leaves_the_old_file(qwen2: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.gguf"
    out.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))  # writes past it fail as on a full disk
    try:
        with pytest.raises(AfsError, match="the disk is full"):
            export_gguf(qwen2, out, "f16", name="tiny")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert out.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [out]


def test_too_little_space_is_said_before_the_work(qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    heard: list[int] = []
    with pytest.raises(AfsError, match="the disk is full"):
        export_gguf(qwen2, tmp_path / "a.gguf", "f16", name="tiny", on_tensor=lambda done, _: heard.append(done))
    assert heard == []


# The embedded base


@pytest.mark.smollm2
@pytest.mark.parametrize(
    ("file_type", "questions"),
    [
        ("f32", ("What is the capital of France?", "Write a haiku about snow.", "What is 2 + 2?")),
        # The haiku has a step where two words are 0.003 apart, less than f16 can tell.
        ("f16", ("What is the capital of France?", "Name three colours.", "What is 2 + 2?")),
    ],
)
def test_the_embedded_base_answers_alike(
    smollm2_base: Path, tmp_path: Path, file_type: FileType, questions: tuple[str, ...]
) -> None:
    folder = smollm2_base
    post = llama_cpp(export_gguf(folder, tmp_path / "model.gguf", file_type, name="SmolLM2 135M").path)
    model, tokenizer = mlx_lm.load(str(folder))
    for question in questions:
        messages = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        rendered = post("/apply-template", {"messages": messages})["prompt"]
        assert post("/tokenize", {"content": rendered, "parse_special": True})["tokens"] == ids
        tokens = generate(post, ids)
        print(f"{question} {tokenizer.decode(tokens)!r}")
        assert tokens == greedy(model, ids, set(tokenizer.eos_token_ids))
