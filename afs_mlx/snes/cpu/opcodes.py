"""The opcode matrix: mnemonic and addressing mode of all 256 opcodes, and the bytes each takes. Executes nothing.

The signs are those of WDC's data sheet: `d` direct page, `a` absolute, `al` absolute long, `r` relative, `d,s` stack
relative, `xyc` block move, `A` the accumulator; `#m` and `#x` are as wide as flag m or x leaves the register.
"""

from dataclasses import dataclass

# Sixteen opcodes in two lines: $00-$07, $08-$0F, $10-$17 and so on.
_MATRIX = """
brk #8     | ora (d,x)  | cop #8     | ora d,s    | tsb d      | ora d      | asl d      | ora [d]
php        | ora #m     | asl A      | phd        | tsb a      | ora a      | asl a      | ora al
bpl r      | ora (d),y  | ora (d)    | ora (d,s),y| trb d      | ora d,x    | asl d,x    | ora [d],y
clc        | ora a,y    | inc A      | tcs        | trb a      | ora a,x    | asl a,x    | ora al,x
jsr a      | and (d,x)  | jsl al     | and d,s    | bit d      | and d      | rol d      | and [d]
plp        | and #m     | rol A      | pld        | bit a      | and a      | rol a      | and al
bmi r      | and (d),y  | and (d)    | and (d,s),y| bit d,x    | and d,x    | rol d,x    | and [d],y
sec        | and a,y    | dec A      | tsc        | bit a,x    | and a,x    | rol a,x    | and al,x
rti        | eor (d,x)  | wdm #8     | eor d,s    | mvp xyc    | eor d      | lsr d      | eor [d]
pha        | eor #m     | lsr A      | phk        | jmp a      | eor a      | lsr a      | eor al
bvc r      | eor (d),y  | eor (d)    | eor (d,s),y| mvn xyc    | eor d,x    | lsr d,x    | eor [d],y
cli        | eor a,y    | phy        | tcd        | jml al     | eor a,x    | lsr a,x    | eor al,x
rts        | adc (d,x)  | per rl     | adc d,s    | stz d      | adc d      | ror d      | adc [d]
pla        | adc #m     | ror A      | rtl        | jmp (a)    | adc a      | ror a      | adc al
bvs r      | adc (d),y  | adc (d)    | adc (d,s),y| stz d,x    | adc d,x    | ror d,x    | adc [d],y
sei        | adc a,y    | ply        | tdc        | jmp (a,x)  | adc a,x    | ror a,x    | adc al,x
bra r      | sta (d,x)  | brl rl     | sta d,s    | sty d      | sta d      | stx d      | sta [d]
dey        | bit #m     | txa        | phb        | sty a      | sta a      | stx a      | sta al
bcc r      | sta (d),y  | sta (d)    | sta (d,s),y| sty d,x    | sta d,x    | stx d,y    | sta [d],y
tya        | sta a,y    | txs        | txy        | stz a      | sta a,x    | stz a,x    | sta al,x
ldy #x     | lda (d,x)  | ldx #x     | lda d,s    | ldy d      | lda d      | ldx d      | lda [d]
tay        | lda #m     | tax        | plb        | ldy a      | lda a      | ldx a      | lda al
bcs r      | lda (d),y  | lda (d)    | lda (d,s),y| ldy d,x    | lda d,x    | ldx d,y    | lda [d],y
clv        | lda a,y    | tsx        | tyx        | ldy a,x    | lda a,x    | ldx a,y    | lda al,x
cpy #x     | cmp (d,x)  | rep #8     | cmp d,s    | cpy d      | cmp d      | dec d      | cmp [d]
iny        | cmp #m     | dex        | wai        | cpy a      | cmp a      | dec a      | cmp al
bne r      | cmp (d),y  | cmp (d)    | cmp (d,s),y| pei (d)    | cmp d,x    | dec d,x    | cmp [d],y
cld        | cmp a,y    | phx        | stp        | jml [a]    | cmp a,x    | dec a,x    | cmp al,x
cpx #x     | sbc (d,x)  | sep #8     | sbc d,s    | cpx d      | sbc d      | inc d      | sbc [d]
inx        | sbc #m     | nop        | xba        | cpx a      | sbc a      | inc a      | sbc al
beq r      | sbc (d),y  | sbc (d)    | sbc (d,s),y| pea a      | sbc d,x    | inc d,x    | sbc [d],y
sed        | sbc a,y    | plx        | xce        | jsr (a,x)  | sbc a,x    | inc a,x    | sbc al,x
"""

# Bytes after the opcode; #m and #x have one more where the register is 16 bits wide.
OPERAND_BYTES = {
    **dict.fromkeys(("", "A"), 0),
    **dict.fromkeys(("#m", "#x", "#8", "r"), 1),
    **dict.fromkeys(("d", "d,x", "d,y", "(d)", "(d,x)", "(d),y", "[d]", "[d],y", "d,s", "(d,s),y"), 1),
    **dict.fromkeys(("a", "a,x", "a,y", "(a)", "(a,x)", "[a]", "rl", "xyc"), 2),
    **dict.fromkeys(("al", "al,x"), 3),
}


@dataclass(frozen=True)
class Opcode:
    """One of the 256: `name` is the mnemonic in lower case, `mode` a key of OPERAND_BYTES."""

    code: int
    name: str
    mode: str

    def operand_bytes(self, m8: bool, x8: bool) -> int:
        """How many bytes follow the opcode under these widths."""
        wide = (self.mode == "#m" and not m8) or (self.mode == "#x" and not x8)
        return OPERAND_BYTES[self.mode] + wide


def _read_matrix() -> tuple[Opcode, ...]:
    cells = [cell.strip() for line in _MATRIX.strip().splitlines() for cell in line.split("|")]
    return tuple(Opcode(code, *(cell.split(" ") if " " in cell else (cell, ""))) for code, cell in enumerate(cells))


OPCODES = _read_matrix()
