"""Runs one routine from one state and tells what it did and what it cost. Judges nothing, knows no model."""
