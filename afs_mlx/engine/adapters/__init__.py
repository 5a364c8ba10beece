"""LoRA adapters as folders: the MLX adapter folder and its checks, what a base accepts, and adapters from PEFT.

Every file is checked here, with numpy and safetensors and without mlx, before mlx opens it.
"""
