"""How long the command line takes to answer, beside mlx-lm's own."""

import statistics
import subprocess
import sys
import time

RUNS = 7
OURS = [sys.executable, "-m", "afs_mlx.cli.app", "--help"]
PEER = [sys.executable, "-m", "mlx_lm", "lora", "--help"]


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def main() -> None:
    pairs = [(seconds(OURS), seconds(PEER)) for _ in range(RUNS)]
    ours, peer = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"startup: afs-mlx --help {ours:.2f} s, mlx_lm lora --help {peer:.2f} s, ratio {ratio:.1f}, median of {RUNS}")


if __name__ == "__main__":
    main()
