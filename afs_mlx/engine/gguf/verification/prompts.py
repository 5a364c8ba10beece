"""The prompts that both answer, the first few after every export: questions, code to continue, other languages."""

QUESTIONS = (
    "What does SEP #$20 do?",
    "Write a routine that clears 16 bytes from $7E2000 on.",
    "What is the capital of France?",
    "Explain the register INIDISP ($2100) in two sentences.",
    "Optimise this:\n    LDA #$00\n    STA $10\n    LDA #$00\n    STA $11",
    "Warum ist der Himmel blau? Antworte kurz.",
    "Translate to Japanese: The loop counts down to zero.",
    "Find the bug:\n    LDA $22\n    ADC #$08\n    STA $22",
    "def fibonacci(n):\n    # complete this function",
    "List three colours, one a line.",
    "What is 17 + 25?",
    "これは何のレジスタですか？ $4200",
    "How many cycles does STA $7E2000,X take with a 16-bit accumulator?",
    "Write a haiku about snow.",
    "Summarise: DMA copies blocks of memory to the PPU without the CPU, in forced blank or in vertical blank.",
    "Qu'est-ce qu'une interruption ?",
    'Return JSON with the keys "name" and "size" for an 8-bit register.',
    "Who wrote Don Quixote, and when?",
    "Turn this into a table: A 8 bits, X 16 bits, Y 16 bits.",
    "Continue the listing:\n"
    + "    LDA $10,x\n    STA $20,x\n    DEX\n    BPL -\n" * 12,  # long enough to feel the rotation
)
