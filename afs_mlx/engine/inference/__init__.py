"""Answers from a base with or without an adapter. Knows messages and sampling, no expert."""
