"""The catalog of bases and experts, their prompts, and the choice of an expert for a question."""
