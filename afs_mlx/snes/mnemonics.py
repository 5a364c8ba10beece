"""The tables of the grammar: mnemonics, operand shapes and sizes, taken names, hints for what is refused.

Knows neither how a line or an operand is written nor arithmetic; reads no text.
"""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


IMPLIED = _words(
    "clc cld cli clv dex dey inx iny nop pha phb phd phk php phx phy pla plb pld plp plx ply rti rtl rts sec sed sei "
    "stp tax tay tcd tcs tdc tsc tsx txa txs txy tya tyx wai xba xce"
)
BRANCHES = _words("bcc bcs beq bmi bne bpl bra brl bvc bvs per")
_STORE = "e e,x e,y e,s (e) (e,x) (e),y (e,s),y [e] [e],y"
_GROUPS = {
    " ".join(IMPLIED): "-",
    " ".join(BRANCHES): "e",
    "adc and cmp eor lda ora sbc": f"#e {_STORE}",
    "sta": _STORE,
    "asl dec inc lsr rol ror": "- a e e,x",
    "bit": "#e e e,x",
    "brk wdm": "- #e",
    "cop rep sep": "#e",
    "cpx cpy": "#e e",
    "jml": "e [e]",
    "jmp": "e (e) (e,x) [e]",
    "jsl pea trb tsb": "e",
    "jsr": "e (e,x)",
    "ldx": "#e e e,y",
    "ldy": "#e e e,x",
    "mvn mvp": "e,e",
    "pei": "(e)",
    "stx": "e e,y",
    "sty stz": "e e,x",
}
# Mnemonic to its operand shapes: `e` is an expression, `-` no operand, the rest stands for itself.
SHAPES = {name: _words(shapes) for names, shapes in _GROUPS.items() for name in names.split()}
DATA_BYTES = {"db": 1, "dw": 2, "dl": 3, "dd": 4}
SUFFIX_BYTES = {"b": 1, "w": 2, "l": 3}
_LONG = _words("adc and cmp eor lda ora sbc sta jml jsl")
ONE_BYTE_IMMEDIATE = _words("brk cop rep sep wdm")

# No label has the name of an instruction or register, or of what reads files.
RESERVED = _words("a x y s incbin incsrc incdir include") | SHAPES.keys() | DATA_BYTES.keys()
# Fine before a colon (`table:`, `reset:`), but `table = 3` might be a directive with an operand.
DIRECTIVES = _words(
    "org base arch lorom hirom exlorom exhirom sa1rom fullsa1rom sfxrom norom header pushpc pullpc pushbase pullbase "
    "pushns pullns namespace includeonce includefrom fill fillbyte fillword filllong filldword pad padbyte padword "
    "padlong paddword table cleartable if elseif else endif while endwhile for endfor macro endmacro print error "
    "assert warn warnings warnpc skip freecode freedata freespace freespacebyte prot autoclean autoclear bank "
    "bankcross check math optimize global struct endstruct undef reset xkas asar function double float expecttitle"
)
HINTS = {
    "bge": "write bcs",
    "blt": "write bcc",
    "ina": "write inc",
    "dea": "write dec",
    "swa": "write xba",
    "tad": "write tcd",
    "tda": "write tdc",
    "tas": "write tcs",
    "tsa": "write tsc",
    ".byte": "write db",
    ".word": "write dw",
    ".addr": "write dw",
    ".faraddr": "write dl",
    ".dword": "write dd",
    **{f".{name}": f"write {name}" for name in (*DATA_BYTES, "org")},
    **dict.fromkeys(("incbin", "incsrc", "include", "table"), "no file is read here"),
    **dict.fromkeys(("macro", "while", "for", "if", "print", "function"), "write the code out, without directives"),
    **dict.fromkeys(("hirom", "exlorom", "exhirom", "sa1rom"), "only LoROM is assembled here"),
}
# Other assemblers' notes on M and X. Asar would take them for labels and change nothing.
WIDTH_NOTES = _words(".a8 .a16 .i8 .i16 .smart .accu .al .as .xl .xs .mx")
SIGN_HINTS = {
    "!": "defines are not accepted",
    "@": "this sign is not accepted",
    "\\": "lines cannot be joined",
    '"': "quotes are not accepted; write the bytes",
    "'": "quotes are not accepted; write the bytes",
    "{": "defines are not accepted",
    "}": "defines are not accepted",
    "`": "this is Markdown, not assembly",
}


def operand_bytes(name: str, shape: str, suffix: str | None) -> int:
    """The widest number this operand holds."""
    if name in ONE_BYTE_IMMEDIATE or shape == "e,e" or (name in ("stx", "sty") and shape != "e"):
        return 1
    if shape in ("#e", "e,y") or (name in ("jmp", "jsr", "jml") and shape != "e"):
        widest = 2
    elif shape in ("e", "e,x"):
        widest = 3 if name in _LONG else 2
    else:
        widest = 1
    return min(widest, SUFFIX_BYTES[suffix]) if suffix else widest
