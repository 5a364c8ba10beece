"""What Ollama's servers say when they refuse, and what helps.

The texts are Ollama's own, of old and new versions: tests/golden/ollama/protocol.json has them with their sources.
"""

import re
from dataclasses import dataclass

from afs_mlx.core.errors import AfsError

# `files` in /api/create; before it the Modelfile went over as text.
MIN_VERSION = (0, 5, 5)
TOO_OLD_FIX = (
    f"install Ollama {'.'.join(map(str, MIN_VERSION))} or newer and try again; without that, run `ollama create TAG -f "
    "Modelfile` in the folder of the GGUF (`afs-mlx export gguf` writes both), which every version can"
)
LONGEST_TEXT = 400


@dataclass(frozen=True)
class Refusal:
    """A text that occurs in the server's error, what it means, and the remedy."""

    marker: str
    what: str
    fix: str


REFUSALS = (
    Refusal(
        "no space left on device",
        "the disk of the Ollama server is full",
        "free some space where Ollama keeps its models (OLLAMA_MODELS, else ~/.ollama/models), or take a smaller "
        "--type; `ollama rm` removes models",
    ),
    Refusal(
        "disk quota exceeded",
        "the disk quota of the Ollama server is used up",
        "free some space where Ollama keeps its models (OLLAMA_MODELS, else ~/.ollama/models)",
    ),
    Refusal(
        "digest mismatch",
        "the server received other bytes than were sent",
        "try again; when it comes back, export the GGUF anew and check the disk",
    ),
    Refusal(
        "lora adapters are no longer supported",
        "this Ollama no longer takes adapters",
        "hand over the whole model: `afs-mlx export ollama` without an adapter GGUF",
    ),
    Refusal(
        "create-time quantization is only supported",
        "this Ollama no longer quantises a GGUF",
        "quantise here: --type q8_0 or a smaller one",
    ),
    Refusal("path or modelfile are required", "this Ollama is too old", TOO_OLD_FIX),
    Refusal("neither 'from' or 'files' was specified", "this Ollama takes no files in this call", TOO_OLD_FIX),
    Refusal(
        "failed to validate gguf",
        "this Ollama holds the GGUF for invalid",
        "try --type q8_0, or a newer Ollama; `afs-mlx export gguf` checks the file here",
    ),
    Refusal(
        "unknown model architecture",
        "this Ollama does not know the model's architecture",
        "install a newer Ollama",
    ),
    Refusal(
        "unsupported architecture",
        "this Ollama does not know the model's architecture",
        "install a newer Ollama",
    ),
    Refusal(
        "requires more system memory",
        "the server has too little memory for this model",
        "close other programs, or take a smaller --type",
    ),
    Refusal(
        "invalid model name",
        "Ollama does not accept this name",
        "write letters, digits, dots, hyphens and underscores, such as --name din-v2",
    ),
    Refusal(
        "template error",
        "this Ollama cannot read our template",
        "install a newer Ollama, or report this with the version",
    ),
)


def refused(said: str, doing: str, address: str) -> AfsError:
    """The error for a server that refused while `doing`; an unknown text is shown as it came."""
    for refusal in REFUSALS:
        if refusal.marker in said.lower():
            return AfsError(f"{refusal.what} (while {doing}; it says: {shown(said)})", address, refusal.fix)
    return AfsError(
        f"Ollama refused while {doing}: {shown(said) or 'it gave no reason'}",
        address,
        "look in the server's log (`ollama serve` prints it, macOS: ~/.ollama/logs/server.log)",
    )


def too_old(version: str) -> bool:
    """Whether the version is known to be too old; one that we cannot read is not."""
    found = re.match(r"v?(\d+)\.(\d+)\.(\d+)", version)
    numbers = tuple(int(number) for number in found.groups()) if found else ()
    return bool(numbers) and any(numbers) and numbers < MIN_VERSION  # 0.0.0 is what people build themselves


def shown(text: str) -> str:
    """A server's text on one line, without control characters, cut where it gets long."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return flat if len(flat) <= LONGEST_TEXT else f"{flat[:LONGEST_TEXT]}…"
