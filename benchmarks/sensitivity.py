"""How much the equivalence checker notices: every line of every better routine is left out once.

`python -m benchmarks.sensitivity` prints the verdicts and each routine that is still equal, for a person to read: a
line may really do nothing that anybody needs.
"""

from collections import Counter

from afs_mlx.core.jsonl import read_jsonl
from afs_mlx.core.paths import Workspace
from afs_mlx.schema.optimisation import OptimisationPair
from afs_mlx.snes.asar import assemble
from afs_mlx.snes.equivalence.checker import Checker, Contract
from afs_mlx.snes.execution.routine import Routine
from afs_mlx.snes.mnemonics import DATA_BYTES

FILES = ("data/curated/din-v2.jsonl", "evals/suites/optimisation.jsonl")


def main() -> None:
    verdicts: Counter[str] = Counter()
    for file in FILES:
        for pair in read_jsonl(Workspace.find().find_file(file), OptimisationPair.model_validate):
            checker = Checker(Routine.of(assemble(pair.code)), Contract((pair.entry,), pair.live))
            lines = pair.better.split("\n")
            for place, line in enumerate(lines):
                words = line.split()
                if not words or words[0].endswith(":") or words[0] in DATA_BYTES:
                    continue
                shorter = assemble("\n".join(lines[:place] + lines[place + 1 :]))
                verdict = checker.check(Routine.of(shorter)).verdict if shorter.status == "ok" else "does not assemble"
                verdicts[verdict] += 1
                if verdict not in ("differs", "no return", "does not assemble"):
                    print(f"{pair.id} without line {place + 1} ({line.strip()}): {verdict}; live {pair.live}")
    print(", ".join(f"{verdict} {count}" for verdict, count in verdicts.most_common()))


if __name__ == "__main__":
    main()
