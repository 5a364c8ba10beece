"""Signs of code that is not for the SNES: other processors' registers and mnemonics, other languages' forms."""

import re
from collections.abc import Sequence

from afs_mlx.snes.registers.wording import words_of

_PROCESSORS = {
    "x86": words_of(
        "eax ebx ecx edx esi edi esp ebp rax rbx rcx rdx rsi rdi rsp rbp r8d r9d mov movl movq movzx lea leal imul "
        "idiv cmov cmovz jne jnz jz jge jle jg syscall sysenter int80 xmm0 xmm1 ymm0 sse sse2 avx avx2 pushad popad "
        "stosb movsb nasm masm fasm"
    ),
    "arm": words_of(
        "ldr ldrb ldrh str strb strh ldmia stmdb ldp stp blx bx movs movw movt adds subs cbz cbnz svc neon vldr thumb "
        "thumb2 cortex r0 r1 r2 r3 r4 r5 r6 r7 r12 x0 w0 wzr xzr"
    ),
    "mips": words_of(
        "addi addiu lui jal jalr beqz bnez bgez lw sw lb sb lbu ecall auipc addw rv32 rv32i rv64 t0 t1 a0 a1 s0 zero"
    ),
    "z80": words_of("djnz ldir lddr exx hl ix iy ld cpir outi sm83 reti di ei halt"),
    "68k": words_of("moveq movem lea bsr dbra dbf cmpi addq subq andi ori d0 d1 d2 d7 a6 a7 trap"),
}
_LANGUAGE = re.compile(
    r"^[ \t]*(?:def \w+\(|class \w+[(:{]|import \w+|from \w+ import|#include\b|using namespace|public (?:static|class)|"
    r"fn \w+\(|func \w+\(|let (?:mut )?\w+ =|const \w+ =|var \w+ =|for ?\(|if ?\(.*\) ?\{|return [\w\"'(].*;|SELECT\s|"
    r"CREATE TABLE|echo |console\.log|printf?\(|#!/|<\w+[ >]|\}\s*$)",
    re.M,
)


def foreign_signs(text: str, words: Sequence[str]) -> list[str]:
    """The signs of a text: `processor x86` for each word of it, and `language` for a line of another language."""
    present = set(words)
    signs = [
        sign for name, known in _PROCESSORS.items() for sign in [f"processor {name}"] * min(3, len(known & present))
    ]
    return signs + ["language"] * min(3, len(_LANGUAGE.findall(text)))
