"""The 65816 as a specification that runs: opcodes, addressing, operations, bus, cycles. Knows no text."""
