"""The strings on which llama.cpp must give the same token ids: made by rule, the same ones every time.

Written texts, the package's own data where it lies here, the tokenizer's control tokens spelled in text, and what rules
make of these: other cases, other white space, two that meet without a boundary. All NFC: llama.cpp normalises nothing.
"""

import json
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from afs_mlx.core.paths import checkout
from afs_mlx.engine.gguf.verification.corpus_texts import (
    ASSEMBLY,
    CODE,
    LONG,
    MIXED,
    NUMBERS,
    SENTENCES,
    SIGNS,
    SPACES,
)

COUNT = 3000
DATA = ("data/curated", "evals/suites")
DATA_ROWS = 40  # of each file
DATA_TEXTS = 300
ROW_CHARACTERS = 600

RULES: tuple[Callable[[str], str], ...] = (
    str.upper,
    str.title,
    lambda text: text.replace(" ", "  "),
    lambda text: text.replace(" ", "\n"),
    lambda text: text.replace(" ", ""),
    lambda text: f"  {text}\t",
    lambda text: f"; {text}\n" * 2,
    lambda text: f'"{text}"',
    lambda text: text[len(text) // 3 :],
    lambda text: text[::-1],
)
JOINTS = ("", " ", "\n", "'s ", "7", "_", "\u3000", "<", ".\n\n    ")


def corpus(control: Sequence[str], count: int = COUNT) -> list[str]:
    """`count` different strings, evenly chosen from COUNT of them; `control` are the tokenizer's added tokens."""
    texts: dict[str, None] = {}
    for text in _candidates(control):
        texts[unicodedata.normalize("NFC", text)] = None
        if len(texts) == COUNT:
            break
    whole = list(texts)
    return [whole[number * len(whole) // count] for number in range(min(count, len(whole)))]


def _candidates(control: Sequence[str]) -> Iterator[str]:
    written = [*SENTENCES, *SIGNS, *NUMBERS, *SPACES, *ASSEMBLY, *CODE, *LONG, *MIXED]
    yield from written
    yield from _control_texts(control)
    yield from islice(_own_rows(), DATA_TEXTS)
    for text in written:
        yield from (piece for piece in text.splitlines() if len(piece) < len(text))
    for turn, rule in enumerate(RULES):
        yield from (rule(text) for text in written[turn % 2 :: 2])
    # Strides that share no factor with the number of texts: each text meets many others, across all kinds.
    for turn, joint in enumerate(chain(JOINTS, JOINTS, JOINTS)):
        for number, text in enumerate(written):
            other = written[(number * 7 + turn * 31 + 1) % len(written)]
            yield text[-40:] + joint + other[:40]


def _control_texts(control: Sequence[str]) -> Iterator[str]:
    for token in control[:40]:
        yield token
        yield f"a{token}b"
        yield f" {token} \n{token}{token}"
        yield token[:-1]
        yield token.upper()
        yield f"{token[0]} {token[1:]}"
    yield "".join(control[:40])
    yield "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<tool_call>\n{}\n</tool_call><|endoftext|>"
    yield "<|unknown|> <|im_start <|im_end|x> <s> </s> [INST] <0x0A> <unk> <pad> [PAD703] <|reserved_special_token_0|>"


def _own_rows() -> Iterator[str]:
    """Texts from the rows of our own data files, where this runs from a checkout."""
    root = checkout()
    if root is None:
        return
    for path in sorted(path for folder in DATA for path in (root / folder).glob("*.jsonl")):
        yield from _rows(path)


def _rows(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for _, line in zip(range(DATA_ROWS), file, strict=False):
            try:
                row = json.loads(line)
            except ValueError:
                continue
            yield from (text[:ROW_CHARACTERS] for text in _texts(row))


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str) and len(value) > 20:
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)
