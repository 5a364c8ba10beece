"""The tokenizer of a model folder as GGUF metadata: tokens, merges, special ids, pre-tokenizer, chat template.

llama.cpp splits text by rules of its own that a name selects; with the wrong name it tokenises differently and says
nothing. So the name comes from an exact match of tokenizer.json's rules, and what is in no table is refused.
Only byte-level BPE: SentencePiece and WordPiece tokenizers are not exported.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType
from tokenizers import Tokenizer

from afs_mlx.core.errors import AfsError, MissingError, problems
from afs_mlx.core.files import read_json

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

type Steps = tuple[str, ...]

BYTES = "bytes"
GPT2_WORDS = "bytes, split as GPT-2 does"
SINGLE_DIGITS = "single digits"

# The steps of tokenizer.json's pre_tokenizer, and whether a word that is a token skips the merges → llama.cpp's name.
PRE_TOKENIZERS: dict[tuple[Steps, bool], str] = {
    ((CONTRACTIONS + WORDS + r"\p{N}" + REST, BYTES), False): "qwen2",
    ((CONTRACTIONS + WORDS + r"\p{N}{1,3}" + REST, BYTES), True): "llama-bpe",
    ((SINGLE_DIGITS, GPT2_WORDS), False): "smollm",
    ((GPT2_WORDS,), False): "gpt-2",
}
FIX = "export a model with the tokenizer of Qwen2, Qwen3, Llama 3, SmolLM or GPT-2, unchanged"


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer ready to be written. `tokens` and `types` have the length of the embedding."""

    pre: str
    tokens: tuple[str, ...]
    types: tuple[TokenType, ...]
    merges: tuple[str, ...]
    special_ids: Mapping[str, int]  # gguf's names: bos, eos, eot, eom, pad, unk, sep, mask
    add_bos: bool
    add_eos: bool
    chat_templates: Mapping[str, str]

    def add_to(self, writer: GGUFWriter) -> None:
        """Write every tokenizer key."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        for kind, number in self.special_ids.items():
            getattr(writer, f"add_{kind}_token_id")(number)
        # Written even when false: llama.cpp's own default depends on the pre-tokenizer's name.
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        if self.chat_templates:
            writer.add_chat_template([{"name": name, "template": text} for name, text in self.chat_templates.items()])


def read_vocabulary(folder: Path, config: Mapping[str, Any], size: int) -> Vocabulary:
    """The tokenizer of a model folder, padded to `size` tokens.

    Raises MissingError without tokenizer.json, AfsError listing everything about it that llama.cpp cannot do.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise MissingError("the tokenizer is missing", str(path), f"{FIX}; SentencePiece files are not exported")
    rules = read_json(path, "the tokenizer")
    tokenizer = _loaded(path, rules)
    settings = read_json(folder / "tokenizer_config.json", "the tokenizer's configuration")
    found = _unsupported(rules)
    pre = PRE_TOKENIZERS.get((_steps(rules.get("pre_tokenizer")), bool(rules["model"].get("ignore_merges")))) or ""
    if not pre:
        found.append(f"pre_tokenizer: {_steps(rules.get('pre_tokenizer'))} is in no table")
    ids = {
        **rules["model"].get("vocab", {}),
        **{token["content"]: token["id"] for token in (rules.get("added_tokens") or [])},
    }
    tokens, types = _tokens(ids, (rules.get("added_tokens") or []), size, found)
    special_ids = _special_ids(folder, settings, config, ids, found)
    if found:
        raise problems(found, "this tokenizer cannot be exported", str(path), FIX)
    add_bos, add_eos = _added_by_encoding(tokenizer, path, special_ids)
    return Vocabulary(
        pre=pre,
        tokens=tokens,
        types=types,
        merges=tuple(_merge(pair) for pair in rules["model"]["merges"]),
        special_ids=special_ids,
        add_bos=add_bos,
        add_eos=add_eos,
        chat_templates=_chat_templates(folder, settings),
    )


def _loaded(path: Path, rules: dict[str, Any]) -> Tokenizer:
    """The tokenizer; its library decides what is well formed, so that what follows need not look again."""
    model = rules.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if not isinstance(model, dict) or kind != "BPE":
        raise AfsError(f"a tokenizer of type {kind!r} is not exported, only BPE with merges", "tokenizer.json", FIX)
    if not model.get("merges"):
        raise AfsError("the tokenizer has no merges: it would cut every text into bytes", "tokenizer.json", FIX)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower kind
        raise AfsError(
            f"the tokenizer cannot be read: {error}", str(path), "download or make the model again"
        ) from error


def _unsupported(rules: dict[str, Any]) -> list[str]:
    """What llama.cpp's byte-level BPE has no counterpart for."""
    model = rules["model"]
    found = [
        f"model.{key}: {model[key]!r}"
        for key in ("byte_fallback", "dropout", "continuing_subword_prefix", "end_of_word_suffix")
        if model.get(key)
    ]
    normalizer = rules.get("normalizer") or {}
    if not isinstance(normalizer, dict):
        return [*found, f"normalizer: {normalizer!r}"]
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    # llama.cpp normalises nothing; NFC is what nearly all text already is.
    found += [f"normalizer: {step.get('type')}" for step in steps if step.get("type") != "NFC"]
    for token in rules.get("added_tokens") or []:
        flags = [flag for flag in ("lstrip", "rstrip", "single_word") if token.get(flag)]
        found += [f"added token {token['content']!r}: {', '.join(flags)}"] if flags else []
    return found


def _steps(pre_tokenizer: Any) -> Steps:
    """A pre-tokenizer in the spelling of the table; what the table cannot hold keeps its JSON type as name."""
    if not isinstance(pre_tokenizer, dict):
        return ()
    match pre_tokenizer:
        case {"type": "Sequence", "pretokenizers": list(parts)}:
            return tuple(step for part in parts for step in _steps(part))
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated"} if not pre_tokenizer.get(
            "invert"
        ):
            return (pattern,)
        case {"type": "Digits", "individual_digits": True}:
            return (SINGLE_DIGITS,)
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return (GPT2_WORDS if pre_tokenizer.get("use_regex", True) else BYTES,)
    return (str(pre_tokenizer.get("type")),)


def _tokens(
    ids: Mapping[str, int], added: list[dict[str, Any]], size: int, found: list[str]
) -> tuple[tuple[str, ...], tuple[TokenType, ...]]:
    """Text and type of every id below `size`; ids without a token are UNUSED, as upstream names them."""
    by_id = {number: token for token, number in ids.items()}
    beyond = sorted(number for number in by_id if not 0 <= number < size)
    if beyond:
        found.append(f"{len(beyond)} token ids beyond vocab_size {size}, the first is {beyond[0]}")
    if len(by_id) != len(ids):
        found.append(f"{len(ids) - len(by_id)} token ids are given twice")
    special = {token["id"]: _added_type(token) for token in added}
    tokens = tuple(by_id.get(number, f"[PAD{number}]") for number in range(size))
    types = tuple(
        special.get(number, TokenType.NORMAL if number in by_id else TokenType.UNUSED) for number in range(size)
    )
    if len(set(tokens)) != size:
        found.append("a token has the name of a padding token ([PAD…])")
    return tokens, types


def _added_type(token: dict[str, Any]) -> TokenType:
    """CONTROL is not shown and not parsed from plain text; `<|…|>` is that even where Hugging Face says otherwise."""
    text = token["content"]
    control = token.get("special") or (text.startswith("<|") and text.endswith("|>"))
    return TokenType.CONTROL if control else TokenType.USER_DEFINED


def _special_ids(
    folder: Path, settings: dict[str, Any], config: Mapping[str, Any], ids: Mapping[str, int], found: list[str]
) -> dict[str, int]:
    """The ids with a meaning. A model that ends its turn in several ways has them as eos, eot and eom."""
    special: dict[str, int] = {}
    for kind in ("bos", "eos", "pad", "unk", "sep", "mask"):
        token = settings.get(f"{kind}_token")
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str) and text in ids:
            special[kind] = ids[text]
        elif isinstance(text, str):
            found.append(f"{kind}_token: {text!r} is not a token")
    generation = folder / "generation_config.json"
    generated = read_json(generation, "the generation defaults") if generation.is_file() else {}
    ends = [special["eos"]] if "eos" in special else []
    for source in (config, generated):
        listed = source.get("eos_token_id")
        for number in listed if isinstance(listed, list) else [listed]:
            if isinstance(number, int) and number not in ends:
                ends.append(number)
    if not ends:
        found.append("eos_token: neither tokenizer_config.json nor config.json names one, generation would never stop")
    outside = [number for number in ends if number not in ids.values()]
    found += [f"eos_token_id: {number} is not a token" for number in outside]
    return {**special, **dict(zip(("eos", "eot", "eom"), ends, strict=False))}


def _added_by_encoding(tokenizer: Tokenizer, path: Path, special_ids: Mapping[str, int]) -> tuple[bool, bool]:
    """Whether encoding puts bos before and eos after a text: asked of the tokenizer, not guessed from its rules."""
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a").ids
    before = [special_ids["bos"]] if "bos" in special_ids else []
    after = [special_ids["eos"]]
    for add_bos, add_eos in ((False, False), (True, False), (False, True), (True, True)):
        if full == before * add_bos + plain + after * add_eos and (before or not add_bos):
            return add_bos, add_eos
    raise AfsError("the tokenizer adds other tokens than bos and eos to a text", str(path), FIX)


def _merge(pair: str | list[str]) -> str:
    """One merge as GGUF writes it; in the pair form of newer files a part may hold a literal space."""
    if isinstance(pair, str):
        return pair
    return " ".join(part.replace(" ", "Ġ") for part in pair)


def _chat_templates(folder: Path, settings: dict[str, Any]) -> dict[str, str]:
    """Name → Jinja text, empty for a model that has none; a file of its own wins, as in transformers."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return {"default": path.read_text(encoding="utf-8")}
    given = settings.get("chat_template")
    if isinstance(given, str):
        return {"default": given}
    if isinstance(given, list):
        return {
            entry["name"]: entry["template"]
            for entry in given
            if isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("template"), str)
        }
    return {}
