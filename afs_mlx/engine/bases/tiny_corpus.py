"""The text that the tiny base's tokenizer is trained on: 65816 assembly and English about it, written for this."""

CORPUS = r"""
; Clear a page of work RAM. Enters with any register widths, returns with 8-bit A.
ClearPage:
    PHP
    REP #$30
    LDX #$00FE
    LDA #$0000
.loop:
    STA $7E2000,X
    DEX
    DEX
    BPL .loop
    SEP #$20
    PLP
    RTS

; Multiply two bytes with the hardware multiplier: result in $4216.
Multiply:
    SEP #$20
    LDA $10
    STA $4202
    LDA $12
    STA $4203
    NOP
    NOP
    NOP
    NOP
    REP #$20
    LDA $4216
    STA $14
    RTL

; Wait for the vertical blank, then copy the palette with DMA channel 0.
WaitVBlank:
    LDA $4212
    BPL WaitVBlank
    STZ $2121
    LDA #$22
    STA $4301
    LDX #$0200
    STX $4305
    LDA #$01
    STA $420B
    RTS

; Add eight to the player's X position and keep it inside the screen.
MovePlayer:
    CLC
    LDA $22
    ADC #$0008
    CMP #$0100
    BCC .inside
    LDA #$00FF
.inside:
    STA $22
    SEC
    SBC $0DB3
    TAX
    LDA.l Table,X
    AND #$000F
    ORA #$8000
    STA.w $0100,Y
    INY
    INY
    CPY #$0010
    BNE MovePlayer
    JSR ClearPage
    JSL Multiply
    JMP WaitVBlank
Table:
    db $00, $01, $02, $03, $04, $05, $06, $07
    dw $1000, $2000, $3000, $4000
    org $008000
    !Player = $7E0022
    XBA
    TAY
    TXA
    TYA
    PHA
    PLA
    PHX
    PLX
    PHY
    PLY
    ASL A
    LSR A
    ROL A
    EOR #$FF
    BEQ .done
    BRA .loop
    MVN $7E,$7F
    RTI

The accumulator is eight or sixteen bits wide; the m flag decides. SEP #$20 makes it eight bits, REP #$20 makes it
sixteen.
What does this routine do? It clears a page of memory, one word at a time, and returns to the caller.
Explain the register at $2100. It sets the screen brightness and forces the blank. Write zero there and the screen
is black.
Optimize this code: it loads zero into the accumulator and stores it. Use STZ instead, which is two bytes shorter
and two cycles faster.
Find the bug in this routine and fix it. The carry flag is not cleared before the addition, so the result is
sometimes one too large.
Write a routine that copies sixteen bytes from the source to the destination. The loop counts down, so that no
compare is needed.
The direct page register holds the address of the page that short addresses are relative to. The data bank register
holds the bank.
How many cycles does this instruction take? Three, and one more when the accumulator is sixteen bits wide.
You are a helpful assistant. The user asks a question about the Super Nintendo, and the assistant answers with code
and a short explanation.
Here is the optimized code:
```asm
    REP #$20
    STZ $10
    RTS
```
The loop runs once for each byte, the index register goes down to zero, and the branch is taken while the result is
positive.
{"name": "read_file", "arguments": {"path": "src/main.asm"}}
{"name": "search", "arguments": {"query": "palette", "limit": 10}}
"""
