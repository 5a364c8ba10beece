"""GGUF export, held against the two that have to agree: mlx, which trained, and llama.cpp, which runs."""

import json
import random
import resource
import tracemalloc
import unicodedata
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
import xllamacpp
from gguf import GGUFReader
from mlx_lm.models.cache import make_prompt_cache
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from afs_mlx.core.errors import AfsError, MissingError, UsageError
from afs_mlx.core.files import sha256_of
from afs_mlx.engine.bases.tiny_qwen2 import build_tiny_qwen2
from afs_mlx.engine.gguf import FileType, export_gguf
from afs_mlx.engine.gguf.layouts import LAYOUTS, ROPE_FACTORS
from afs_mlx.engine.gguf.shape import read_shape

TOKENS = 24
EXACT = 0.001  # max |Δ log p| where only the order of additions differs; f16 and q8_0 round weights and activations
PROMPTS = ("LDA #$10\nSTA $2100", "Explain the register INIDISP.", "def f(x):\n    return x + 1\n", "é 日本語 12345")
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

Post = Callable[[str, dict[str, Any]], dict[str, Any]]


def llama_cpp(path: Path) -> Post:
    """Load a file with llama.cpp; the returned function posts to its server."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx, parameters.n_parallel, parameters.cpuparams.n_threads = 512, 1, 1
    # Its cache is f16 otherwise, and hides how exact the file is.
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    # On a Mac, too: its GPU multiplies float32 in half precision.
    parameters.n_gpu_layers, parameters.no_op_offload, parameters.no_kv_offload = 0, True, True
    parameters.warmup, parameters.use_jinja, parameters.verbosity = False, True, -1
    server = xllamacpp.Server(parameters)

    def post(route: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            server.listening_address + route, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            result: dict[str, Any] = json.load(answer)
        return result

    return post


def generate(post: Post, ids: list[int]) -> list[int]:
    """llama.cpp's greedy tokens."""
    body = {"prompt": ids, "n_predict": TOKENS, "temperature": 0, "return_tokens": True, "cache_prompt": False}
    tokens: list[int] = post("/completion", body)["tokens"]
    return tokens


def greedy(model: Any, ids: list[int], ends: set[int]) -> list[int]:
    """mlx's greedy tokens."""
    cache, tokens, fed = make_prompt_cache(model), list[int](), ids
    while len(tokens) < TOKENS and not (tokens and tokens[-1] in ends):
        tokens.append(int(mx.argmax(model(mx.array([fed]), cache=cache)[0, -1]).item()))
        fed = tokens[-1:]
    return tokens


def difference(post: Post, model: Any, ids: list[int], tokens: list[int]) -> float:
    """The largest difference of log-probabilities over the whole vocabulary, before every third of `tokens`."""
    logits = model(mx.array([ids + tokens]))[0].astype(mx.float32)
    expected = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    worst = 0.0
    for taken in range(0, len(tokens), 3):
        # The bias makes it choose a plain letter: it reports nothing for a token that ends within a character. What it
        # reports is from before the bias.
        body = {"prompt": ids + tokens[:taken], "n_predict": 1, "temperature": 0, "n_probs": expected.shape[1]}
        body["logit_bias"] = [["a", 1000]]
        entries = post("/completion", body)["completion_probabilities"][0]["top_logprobs"]
        assert len(entries) == expected.shape[1]
        row = expected[len(ids) + taken - 1]
        worst = max(worst, *(abs(entry["logprob"] - float(row[entry["id"]])) for entry in entries))
    return worst


def compare(folder: Path, path: Path) -> tuple[bool, float]:
    """Whether llama.cpp and mlx in float32 say the same greedily, and the largest difference of log-probabilities."""
    model, tokenizer = mlx_lm.load(str(folder))
    model.set_dtype(mx.float32)
    post = llama_cpp(path)
    same, worst = True, 0.0
    for prompt in PROMPTS:
        ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(prompt).ids
        tokens = generate(post, ids)
        same = same and tokens == greedy(model, ids, set(tokenizer.eos_token_ids))
        worst = max(worst, difference(post, model, ids, tokens))
    return same, worst


def build_tiny_llama(folder: Path, *, pre: str = "llama-bpe", dtype: str = "F32", **changes: Any) -> None:
    """A Llama folder from the tiny Qwen2: its own pre-tokenizer, wider heads, in two shards; noise as weights."""
    build_tiny_qwen2(folder)
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "llama", "head_dim": 24, "rope_theta": 10000.0, "attention_bias": False} | changes
    (folder / "config.json").write_text(json.dumps(config))
    edit(folder / "tokenizer_config.json", lambda settings: settings.update(tokenizer_class="PreTrainedTokenizerFast"))
    edit(folder / "tokenizer.json", lambda rules: give_pre_tokenizer(rules, pre))

    shape = read_shape(config, folder, scaled=True)
    rng = np.random.default_rng(7)
    weights = {
        name: (0.2 * rng.standard_normal(target.shape) + (name.endswith("norm.weight"))).astype(np.float32)
        for name, (entry, target) in LAYOUTS["llama"].targets(shape).items()
        if entry.need == "always"
        or (entry.need == "untied" and not shape.tied)
        or (entry.need == "if present" and config["attention_bias"] and "self_attn" in name)
    }
    shards = list(weights)[::2], list(weights)[1::2]
    files = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for file, names in zip(files, shards, strict=True):
        arrays = {
            name: mx.array(weights[name]).astype(mx.bfloat16 if dtype == "BF16" else mx.float32) for name in names
        }
        mx.save_safetensors(str(folder / file), arrays, {"format": "mlx"})
    index = {name: file for file, names in zip(files, shards, strict=True) for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def give_pre_tokenizer(rules: dict[str, Any], pre: str) -> None:
    """Turn the tiny tokenizer's rules into another family's."""
    if pre == "smollm":
        rules["normalizer"] = None
        rules["pre_tokenizer"]["pretokenizers"] = [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        ]
    if pre == "llama-bpe":
        split = rules["pre_tokenizer"]["pretokenizers"][0]["pattern"]
        split["Regex"] = split["Regex"].replace(r"\p{N}|", r"\p{N}{1,3}|")
        rules["normalizer"] = None
        rules["model"]["ignore_merges"] = True


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON file in place."""
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


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


@pytest.mark.parametrize(
    ("file_type", "same", "tolerance"), [("f32", True, EXACT), ("f16", True, 0.04), ("q8_0", False, 0.8)]
)
def test_llama_cpp_agrees_with_mlx(
    qwen2: Path, tmp_path: Path, file_type: FileType, same: bool, tolerance: float
) -> None:
    export_gguf(qwen2, tmp_path / "model.gguf", file_type, name="tiny")
    agree, worst = compare(qwen2, tmp_path / "model.gguf")
    print(f"{file_type}: greedy equal {agree}, max |Δ log p| {worst:.6f}")
    assert worst < tolerance
    assert agree or not same


LLAMAS: dict[str, dict[str, Any]] = {
    "smollm, tied": {"pre": "smollm"},
    "bf16, untied": {"dtype": "BF16", "tie_word_embeddings": False},
    "biases, equal heads": {"attention_bias": True, "num_key_value_heads": 4},
    "scaled rotation": {
        # An original context this short, so that the prompts are long enough to feel it.
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        | {"original_max_position_embeddings": 32}
    },
}


@pytest.mark.parametrize(
    ("kind", "file_type", "tolerance"),
    [*((kind, "f32", EXACT) for kind in LLAMAS), ("smollm, tied", "f16", 0.1), ("bf16, untied", "f16", 0.1)],
)
def test_llama_layouts_agree_with_mlx(tmp_path: Path, kind: str, file_type: FileType, tolerance: float) -> None:
    build_tiny_llama(tmp_path / "model", **LLAMAS[kind])
    export_gguf(tmp_path / "model", tmp_path / "model.gguf", file_type, name="tiny")
    agree, worst = compare(tmp_path / "model", tmp_path / "model.gguf")
    print(f"{kind} as {file_type}: greedy equal {agree}, max |Δ log p| {worst:.6f}")
    assert worst < tolerance
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
        build_tiny_llama(folder, pre=pre)
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
    build_tiny_llama(folder)
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


# The tables, against the gguf package


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_names_agree_with_the_package(qwen2: Path, architecture: str) -> None:
    config = json.loads((qwen2 / "config.json").read_text())
    arch = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    targets = LAYOUTS[architecture].targets(read_shape(config, qwen2, scaled=True))
    assert len(targets) > 40
    for name, (_, target) in targets.items():
        assert names.get_name(name, try_suffixes=(".weight", ".bias")) == target.gguf


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_no_tensor_of_the_architecture_is_forgotten(qwen2: Path, architecture: str) -> None:
    arch = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    shape = read_shape(json.loads((qwen2 / "config.json").read_text()), qwen2, scaled=True)
    written = {target.gguf for _, target in LAYOUTS[architecture].targets(shape).values()} | {ROPE_FACTORS}
    known = {gguf.TENSOR_NAMES[tensor].format(bid=0) for tensor in gguf.MODEL_TENSORS[arch]}
    mixtures = {"blk.0.ffn_gate_inp", "blk.0.ffn_gate_exps", "blk.0.ffn_down_exps", "blk.0.ffn_up_exps"}
    others = {f"blk.0.ffn_{part}.0" for part in ("gate", "down", "up")} | {"blk.0.attn_rot_embd"}
    assert known - mixtures - others - {name.rpartition(".")[0] for name in written} == set()


def test_merges_and_ids_agree_with_the_package(qwen2: Path, qwen2_f16: Path) -> None:
    fields = {name: field.contents() for name, field in GGUFReader(qwen2_f16).fields.items()}
    special = gguf.SpecialVocab(qwen2, load_merges=True, n_vocab=704)
    assert fields["tokenizer.ggml.merges"] == special.merges
    assert fields["tokenizer.chat_template"] == special.chat_template
    for kind in ("eos", "pad"):
        key = gguf.Keys.Tokenizer.EOS_ID if kind == "eos" else gguf.Keys.Tokenizer.PAD_ID
        assert fields[key] == special.special_token_ids[kind]


def test_metadata(qwen2: Path, qwen2_f16: Path) -> None:
    fields = {name: field.contents() for name, field in GGUFReader(qwen2_f16).fields.items()}
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


def test_a_large_model_is_never_in_memory(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    build_tiny_llama(folder, hidden_size=256, intermediate_size=2048, num_hidden_layers=8, head_dim=64)
    export_gguf(folder, tmp_path / "first.gguf", "f16", name="tiny")  # what is imported once is not counted
    tracemalloc.start()
    report = export_gguf(folder, tmp_path / "model.gguf", "f16", name="tiny")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < report.size_bytes / 2


# What is refused, by name


def change_weights(folder: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def refusal(folder: Path, file_type: FileType = "f16") -> str:
    """The error of an export that has to fail, and leave nothing behind."""
    out = folder.parent / "out" / "model.gguf"
    out.parent.mkdir()
    with pytest.raises(AfsError) as caught:
        export_gguf(folder, out, file_type, name="tiny")
    assert list(out.parent.iterdir()) == []
    return str(caught.value)


def test_an_unknown_model_type_is_named(own_qwen2: Path) -> None:
    edit(own_qwen2 / "config.json", lambda config: config.update(model_type="mamba"))
    text = refusal(own_qwen2)
    assert "'mamba'" in text
    assert "known: llama, qwen2" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_theta": None}, "rope_theta: missing"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "kind 'yarn' is not exported"),
        ({"rope_scaling": {"type": "llama3", "factor": 4.0}}, "kind 'llama3' is not exported"),
        ({"rope_parameters": {"rope_theta": 10000.0}}, "rope_theta: 10000.0 and 1000000.0"),
        ({"use_sliding_window": True}, "use_sliding_window: True is not exported"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu' is not exported"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: 3"),
        ({"hidden_size": "64"}, "hidden_size: '64' is not a positive whole number"),
        ({"vocab_size": 640}, "token ids beyond vocab_size 640"),
        ({"num_hidden_layers": 3}, "model.layers.3.mlp.up_proj.weight: no such tensor"),
        ({"intermediate_size": 200}, "model.layers.0.mlp.up_proj.weight: shape [192, 64], expected [200, 64]"),
        ({"tie_word_embeddings": False}, "lm_head.weight: missing"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised by 'awq'"),
    ],
)
def test_a_configuration_that_cannot_be_kept(own_qwen2: Path, change: dict[str, Any], message: str) -> None:
    edit(own_qwen2 / "config.json", lambda config: config.update(change))
    assert message in refusal(own_qwen2)


def test_the_newer_spelling_of_the_rotation(own_qwen2: Path) -> None:
    config = json.loads((own_qwen2 / "config.json").read_text())
    del config["rope_theta"]
    config["rope_parameters"] = {"rope_theta": 5e5, "rope_type": "default"}
    assert read_shape(config, own_qwen2, scaled=False).rope_theta == 5e5


def test_all_unknown_and_missing_tensors_are_listed(own_qwen2: Path) -> None:
    def change(weights: dict[str, np.ndarray]) -> None:
        weights["model.layers.0.self_attn.q_norm.weight"] = np.ones(16, np.float32)
        weights["vision.patch.weight"] = np.ones((2, 2), np.float32)
        del weights["model.layers.1.self_attn.k_proj.bias"]

    change_weights(own_qwen2, change)
    text = refusal(own_qwen2)
    assert "model.layers.0.self_attn.q_norm.weight: no such tensor in a qwen2 model" in text
    assert "vision.patch.weight: no such tensor" in text
    assert "model.layers.1.self_attn.k_proj.bias: missing" in text


def test_what_every_loader_drops_is_dropped(own_qwen2: Path, tmp_path: Path) -> None:
    before = export_gguf(own_qwen2, tmp_path / "before.gguf", "f16", name="tiny")
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}
    extra["lm_head.weight"] = np.ones((704, 64), np.float32)  # tied
    change_weights(own_qwen2, lambda weights: weights.update(extra))
    assert export_gguf(own_qwen2, tmp_path / "after.gguf", "f16", name="tiny").sha256 == before.sha256


@pytest.mark.parametrize("file_type", ["f32", "f16", "q8_0"])
def test_nan_and_infinite_weights_are_named(own_qwen2: Path, file_type: FileType) -> None:
    def change(weights: dict[str, np.ndarray]) -> None:
        weights["model.layers.2.mlp.up_proj.weight"][5, 7] = np.nan
        weights["model.layers.3.self_attn.q_proj.bias"][1] = np.inf

    change_weights(own_qwen2, change)
    text = refusal(own_qwen2, file_type)
    assert "model.layers.2.mlp.up_proj.weight: 1 of 12288 numbers are NaN or infinite" in text
    assert "model.layers.3.self_attn.q_proj.bias: 1 of 64 numbers" in text


def test_a_weight_beyond_f16_is_named_with_the_remedy(own_qwen2: Path, tmp_path: Path) -> None:
    def change(weights: dict[str, np.ndarray]) -> None:
        weights["model.layers.2.mlp.up_proj.weight"][5, 7] = -70000
        weights["model.norm.weight"][0] = 70000  # a vector stays float32

    change_weights(own_qwen2, change)
    text = refusal(own_qwen2)
    assert "model.layers.2.mlp.up_proj.weight: 70000 is beyond 65504, the range of F16" in text
    assert "model.norm.weight" not in text
    assert "q8_0 or f32" in text
    assert export_gguf(own_qwen2, tmp_path / "model.gguf", "q8_0", name="tiny").tensors > 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rules: rules["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\s+"), "is in no table"),
        (lambda rules: rules.update(pre_tokenizer={"type": "Metaspace"}), "('Metaspace',) is in no table"),
        (lambda rules: rules["model"].update(ignore_merges=True), "is in no table"),
        (lambda rules: rules.update(normalizer={"type": "Lowercase"}), "normalizer: Lowercase"),
        (lambda rules: rules["model"].update(byte_fallback=True), "model.byte_fallback"),
        (lambda rules: rules["added_tokens"][0].update(lstrip=True), "added token '<|endoftext|>': lstrip"),
        (lambda rules: rules["model"].update(type="WordPiece"), "type 'WordPiece' is not exported"),
    ],
)
def test_a_tokenizer_that_llama_cpp_cannot_imitate(own_qwen2: Path, change: Any, message: str) -> None:
    edit(own_qwen2 / "tokenizer.json", change)
    assert message in refusal(own_qwen2)


def test_a_model_that_would_never_stop(own_qwen2: Path) -> None:
    edit(own_qwen2 / "tokenizer_config.json", lambda settings: settings.pop("eos_token"))
    edit(own_qwen2 / "config.json", lambda config: config.pop("eos_token_id"))
    (own_qwen2 / "generation_config.json").unlink()
    assert "generation would never stop" in refusal(own_qwen2)


def test_missing_files(own_qwen2: Path, tmp_path: Path) -> None:
    (own_qwen2 / "model.safetensors").rename(tmp_path / "elsewhere")
    with pytest.raises(MissingError, match="no weights here"):
        export_gguf(own_qwen2, tmp_path / "model.gguf", "f16", name="tiny")
    (own_qwen2 / "tokenizer.json").unlink()
    with pytest.raises(MissingError, match="tokenizer is missing"):
        export_gguf(own_qwen2, tmp_path / "model.gguf", "f16", name="tiny")
    with pytest.raises(AfsError, match="configuration is missing"):
        export_gguf(tmp_path, tmp_path / "model.gguf", "f16", name="tiny")
    with pytest.raises(UsageError, match="this is a folder"):
        export_gguf(own_qwen2, tmp_path, "f16", name="tiny")


def test_an_index_that_points_outside(own_qwen2: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "../model.safetensors"}}
    (own_qwen2 / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "points outside the folder" in refusal(own_qwen2)


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
