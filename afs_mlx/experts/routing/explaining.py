"""What decided, in words: the tokens of a linear model as a person reads them. Weighs nothing itself."""

from collections.abc import Iterable, Mapping

_SIGNS = {
    "reg": "a register",
    "mn": "a mnemonic",
    "insn": "an instruction",
    "file": "a file name",
    "path": "a path",
    "url": "a link",
    "addr": "an address",
    "?": "a question mark",
    "!": "an exclamation mark",
    "code": "code",
    "only code": "code without a question",
    "code and text": "code beside the question",
    "code first": "code before the question",
    "code inside": "code in the sentence",
    "comments": "comments in the code",
    "language": "code of another language",
    "nothing of the SNES": "nothing of the SNES",
    "little of the SNES": "little of the SNES",
    "only of elsewhere": "words of other things only",
}
_FOLDED = {
    "_reg": "REGISTER",
    "_mn": "MNEMONIC",
    "_insn": "INSTRUCTION",
    "_file": "FILE",
    "_path": "PATH",
    "_url": "LINK",
    "_num": "NUMBER",
    "_addr": "ADDRESS",
    "_dp": "ADDRESS",
    "_block": "CODE",
    "^": "",
    "$": "",
}


def words(
    parts: Iterable[tuple[str, str, float]], most: int, said: Mapping[str, tuple[str, ...]]
) -> list[tuple[str, float]]:
    """What weighs most, for or against, with one entry for each thing that a person sees, the heaviest first.

    `said` is what of the message is a cue, by the cue's name.
    """
    sums: dict[str, float] = {}
    for block, token, weight in parts:
        if shown := _shown(block, token, said):
            sums[shown] = sums.get(shown, 0.0) + weight
    ranked = sorted(sums.items(), key=lambda item: (-abs(item[1]), item[0]))[:most]
    return [(shown, round(weight, 3)) for shown, weight in ranked]


def _shown(block: str, token: str, said: Mapping[str, tuple[str, ...]]) -> str:
    if block != "signs":
        text = " ".join(part for word in token.split() if (part := _FOLDED.get(word, word)))
        return f"“{text}”" if text else ""
    if token in _SIGNS:
        return _SIGNS[token]
    if token.startswith("reg:"):
        return token.removeprefix("reg:")
    kind, _, whole = token.partition(" ")
    rest = whole.removesuffix(" + code").rstrip("+~").partition(", ")[0]
    plain = {
        "cue": _cue(rest, said),
        "first": f"it begins with “{_FOLDED.get(rest, rest)}”" if rest else "",
        "op": f"the instruction {rest}",
        "mode": f"operands like {whole}",
        "processor": f"words of {rest}",
        "fence": f"a block of {rest}",
        "lines": "the length of the code",
        "length": "its length",
        "no": "no telling word",
    }
    if rest.startswith("cue "):  # the first or the last
        return _cue(rest.removeprefix("cue "), said)
    return plain.get(kind, "")


def _cue(name: str, said: Mapping[str, tuple[str, ...]]) -> str:
    """What of the message is this cue; a phrase stands for the words in it."""
    texts = said.get(name, ())
    whole = [text for text in texts if not any(text in other.split() for other in texts if other != text)]
    return ", ".join(f"“{text}”" for text in whole) or f"words of kind {name}"
