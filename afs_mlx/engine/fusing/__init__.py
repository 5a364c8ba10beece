"""A base and an adapter made one model: `adding` in float32, `rounding` to stored numbers, `writing`, `agreement`.

`fusion` joins the first three. Knows nothing of runs, experts or thresholds. Imports no mlx itself.
"""
