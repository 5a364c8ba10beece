"""Curves of runs: bounded and smoothed, as a line of blocks, as a chart of characters, as one HTML page."""
