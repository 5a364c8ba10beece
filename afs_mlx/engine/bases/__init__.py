"""Bases: the tiny one built from a seed, the embedded one converted from its wheel, and loading of any of them."""
