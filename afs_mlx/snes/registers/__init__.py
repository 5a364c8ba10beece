"""The CPU-visible registers of the SNES: the table, and what a text says about it."""
