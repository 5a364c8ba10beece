"""How long the command line takes to answer, beside mlx-lm's own, and the chat to show its prompt on a terminal.

Loading goes on behind the prompt: the peer of the chat is what a program waits that imports mlx-lm first.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "cli"))
from terminal import Terminal

RUNS = 7
OURS = [sys.executable, "-m", "afs_mlx.cli.app", "--help"]
PEER = [sys.executable, "-m", "mlx_lm", "lora", "--help"]
CHAT = [sys.executable, "-m", "afs_mlx.cli.app", "chat", "--base", "tiny-qwen2"]
IMPORT = [sys.executable, "-c", "import afs_mlx.engine, mlx_lm"]


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def seconds_to_prompt() -> tuple[float, float]:
    """Until the prompt is there, and from Ctrl-D at once to the end: what loads has to come to an end first."""
    began = time.perf_counter()
    with Terminal(CHAT, os.environ) as terminal:
        terminal.until("auto>")
        shown = time.perf_counter()
        terminal.leave()
        return shown - began, time.perf_counter() - shown


def main() -> None:
    pairs = [(seconds(OURS), seconds(PEER)) for _ in range(RUNS)]
    ours, peer = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"startup: afs-mlx --help {ours:.2f} s, mlx_lm lora --help {peer:.2f} s, ratio {ratio:.1f}, median of {RUNS}")
    chats = [(*seconds_to_prompt(), seconds(IMPORT)) for _ in range(RUNS)]
    prompt, left, imported = (statistics.median(side) for side in zip(*chats, strict=True))
    least, most = (pick(first for first, _, _ in chats) for pick in (min, max))
    print(
        f"startup: afs-mlx chat shows its prompt after {prompt:.2f} s ({least:.2f} to {most:.2f} s; importing mlx-lm "
        f"alone {imported:.2f} s), Ctrl-D at once ends it in {left:.2f} s, median of {RUNS}"
    )


if __name__ == "__main__":
    main()
