"""Chains of pipelines."""
