"""afs-mlx: train, prove, ship and run small expert language models on one laptop, offline."""

__version__ = "0.1.0"
