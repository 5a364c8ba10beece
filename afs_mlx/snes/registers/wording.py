"""The forms in which people tie an address to a name: what stands between the two. Knows no registers."""

import re
from functools import lru_cache


def words_of(text: str) -> frozenset[str]:
    """The words of a text as a set."""
    return frozenset(text.split())


_SIGNS = {**dict.fromkeys("–—−‐‑", "-"), "→": "->", "⇒": "=>", "’": "'", "‘": "'", "：": ":"}
_PLAIN = str.maketrans({**dict.fromkeys('*_`"“”«»\\~!'), **_SIGNS})
_TIES = r"(?:(?:the|a|an|registers?|reg|called|named|known as|labell?ed|also|actually|really) )*"
_PLACE = (
    r"(?:(?:the|its|address|addr|addresses|registers?|reg|port|located|found|mapped|memory|cpu|ppu|i/o|io|mmio|hardware|"
    r"snes|at|hex|write-only|read-only|w|r|r/w|rw)[:,]? )*"
)
_VERBS = r"(?:(?:set|writes?|stores?|clear|reads?|load|init|enable|select|to|into|in|via|from|the|register) )*"
_WORD = r"[\w/&'+-]+"
TAIL = r"(?:registers?|reg|ports?)"

# A form: its name, how strongly it ties (the stronger wins a common partner), and what stands between the two.
_ADDRESS_NAME = [
    ("paren", 3, rf" ?[(\[] ?(?:aka |a\.k\.a\. |i\.e\. |name: )?{_TIES}"),
    (
        "is",
        3,
        rf"(?: {TAIL})?(?: on the (?:snes|ppu))?,? (?:is|are|means|equals|(?:corresponds|refers|maps) to) {_TIES}",
    ),
    ("is", 3, rf" ?[,;:-] ?(?:which|that|this|it)(?: is|'s) {_TIES}"),
    ("is", 3, rf"(?: {TAIL})?,? (?:aka|a\.k\.a\.|i\.e\.|also known as|known as|called|named) (?:the )?"),
    ("comment", 3, rf" ?(?:;|//) ?{_VERBS}"),
    ("words", 3, rf",? (?:is|are) (?:the|an?) (?:{_WORD} ){{1,14}}\("),
    ("words", 3, rf"(?:,| -| ?:)? (?:{_WORD} ){{0,8}}(?:register|reg|port) \("),
    ("words", 3, rf" ?\((?:{_WORD} ){{0,8}}{_WORD}, "),
    ("equals", 2, r" ?==? ?|, name: "),
    ("sign", 2, r" ?(?::|->|=>) ?(?:the )?"),
    ("row", 2, r" ?\| ?"),
    ("sign", 1, r" ?- ?"),
    ("equals", 1, r" ?/ ?| register "),
    ("beside", 1, r" |,"),
    ("bracketed", 1, r", "),
    ("far row", 1, r" ?\|(?:[^|]{0,40}\|){1,3} ?"),
]
_NAME_ADDRESS = [
    ("paren", 3, rf"(?: (?:{_WORD} ){{0,5}}{TAIL})?\]{{0,2}} ?[(\[] ?{_PLACE}"),
    ("is", 3, rf"(?: {TAIL})?,?(?: which)? (?:is|are) {_PLACE}"),
    ("is", 3, rf" (?:is |are )?(?:maps|mapped|corresponds) to {_PLACE}"),
    ("is", 3, rf"(?:'s| has)? (?:the )?address (?:is |of )?{_PLACE}"),
    ("at", 3, rf"(?: {TAIL})?,?(?: which)?(?: is| are| lives| resides| sits| lies)? {_PLACE}(?:at|@) {_PLACE}"),
    ("noun", 3, rf",? (?:is )?(?:{_WORD} ){{0,8}}{TAIL},? (?:located |found |mapped )?(?:at |\(){_PLACE}"),
    ("noun", 3, rf" ?\((?:{_WORD} ){{0,8}}{_WORD}, {_PLACE}"),
    ("noun", 3, rf" ?\((?:{_WORD} ){{0,8}}{_WORD}\)(?: {TAIL})?(?: is)?(?: located)?(?: ?[-:=(]| at)? ?{_PLACE}"),
    ("comment", 3, rf" ?(?:;|//) ?{_PLACE}"),
    ("equals", 2, rf" ?:?==? ?{_PLACE}|:? \.?equ |, address:? "),
    ("sign", 2, rf" ?(?::|->|=>) ?{_PLACE}"),
    ("row", 2, r" ?\| ?"),
    ("sign", 1, r" ?- ?"),
    ("equals", 1, r" ?/ ?"),
    ("beside", 1, r" |,"),
    ("bracketed", 1, r", "),
    ("far row", 1, r" ?\|(?:[^|]{0,40}\|){1,3} ?"),
]
_FORMS = {
    is_name: [(form, strength, re.compile(between)) for form, strength, between in forms]
    for is_name, forms in ((False, _ADDRESS_NAME), (True, _NAME_ADDRESS))
}
NOT = re.compile(rf",? (?:(?:is|are|was) not|isn't|aren't) (?:{_TIES}|{_PLACE})")
BUT = re.compile(rf" ?[,;.-]? ?(?:but|it is|it's|rather)(?: rather| instead| it is)? (?:{_TIES}|{_PLACE})")
# A word of these in a description, and the name at its end need not be what is described.
LOOSE = words_of(
    "not no never unlike after before until with without via through when while if because then than where whose see "
    "next other instead except together followed depends during using from"
)
LOOSE_NOUN = LOOSE | words_of("that which for of to used makes on by lets and")


@lru_cache(maxsize=4096)
def plain(text: str) -> str:
    """Without Markdown's and quotation signs, with single spaces, plain dashes and small letters."""
    text = re.sub(r"<[^<>]{1,24}>", " ", text).translate(_PLAIN)
    return re.sub(r"\s+", " ", re.sub(r"'(?![st]\b)", "", text)).lower()


@lru_cache(maxsize=4096)
def form_of(between: str, first_is_name: bool) -> tuple[str, int]:
    """The first form that the text between two mentions has, and its strength; an empty name for none."""
    for form, strength, pattern in _FORMS[first_is_name]:
        if pattern.fullmatch(between):
            return form, strength
    return "", 0
