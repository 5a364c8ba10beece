"""A conversation with experts: a session that the REPL and one-shot use drive, on models here or on an Ollama."""

from afs_mlx.pipelines.chat.config import AUTO, BACKENDS, ChatConfig
from afs_mlx.pipelines.chat.events import AnswerUsage, ChatEvent, ExpertReady, LeftOut, Noted, Routed
from afs_mlx.pipelines.chat.session import ChatSession

__all__ = [
    "AUTO",
    "BACKENDS",
    "AnswerUsage",
    "ChatConfig",
    "ChatEvent",
    "ChatSession",
    "ExpertReady",
    "LeftOut",
    "Noted",
    "Routed",
]
