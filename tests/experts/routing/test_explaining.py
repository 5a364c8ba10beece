"""The words that decided, as a person reads them."""

import pytest

from afs_mlx.experts.routing.explaining import words

SAID = {"measure.cycles": ("clock cycles", "cycles"), "measure": ("clock cycles", "cycles", "how many")}


@pytest.mark.parametrize(
    ("block", "token", "shown"),
    [
        ("words", "how many", "“how many”"),
        ("words", "^ what", "“what”"),
        ("words", "does _mn", "“does MNEMONIC”"),
        ("letters", "cycles", "“cycles”"),
        ("signs", "reg:INIDISP", "INIDISP"),
        ("signs", "only code", "code without a question"),
        ("signs", "cue measure.cycles+", "“clock cycles”"),
        ("signs", "cue measure, code", "“clock cycles”, “how many”"),
        ("signs", "last cue make", "words of kind make"),
        ("signs", "first what + code", "it begins with “what”"),
        ("signs", "mode (dp),y", "operands like (dp),y"),
        ("signs", "no cue, code", "no telling word"),
    ],
)
def test_a_token(block: str, token: str, shown: str) -> None:
    assert words([(block, token, 1.0)], 3, SAID) == [(shown, 1.0)]


def test_what_a_person_sees_once_is_added_up_and_the_heaviest_comes_first() -> None:
    parts = [("words", "fix", 0.25), ("letters", "fix", 0.5), ("words", "the", -1.0), ("words", "a", 0.1)]
    assert words(parts, 2, {}) == [("“the”", -1.0), ("“fix”", 0.75)]
