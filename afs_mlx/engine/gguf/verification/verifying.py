"""An exported file proven: re-read, its numbers compared, and run by llama.cpp beside mlx in float32.

A file that is subtly wrong still loads and answers, so each check is of one thing that goes wrong silently.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load_config, load_tokenizer

from afs_mlx.core.errors import AfsError, problems
from afs_mlx.engine.gguf.verification.agreement import Effort, check_greedy, check_log_probabilities, measure
from afs_mlx.engine.gguf.verification.corpus import COUNT
from afs_mlx.engine.gguf.verification.llama import Llama, LlamaError, consumer_version
from afs_mlx.engine.gguf.verification.opened import UnreadableError, open_both
from afs_mlx.engine.gguf.verification.structure import check_structure
from afs_mlx.engine.gguf.verification.text_checks import check_ends, check_template, check_tokens
from afs_mlx.engine.gguf.verification.tolerances import TOLERANCES
from afs_mlx.engine.gguf.verification.weights import check_weights_of
from afs_mlx.schema.gguf import GgufType
from afs_mlx.schema.verification import Check, Depth, Verification

type OnCheck = Callable[[Check], None]

EFFORTS: dict[Depth, Effort] = {
    "quick": Effort(strings=600, prompts=4, tokens=16, places=3),
    "thorough": Effort(strings=COUNT, prompts=20, tokens=64, places=4),
}
CONTEXT_TOKENS = 1024
CONSUMER_CHECKS = ("loading", "tokens", "chat template", "end tokens", "log-probabilities", "greedy")
INSTALL = "xllamacpp (llama.cpp for Python) is not installed: pip install 'afs-mlx[verify]', then export again"


def verify_gguf(
    gguf: Path, model_folder: Path, file_type: GgufType, *, depth: Depth = "quick", on_event: OnCheck | None = None
) -> Verification:
    """Run every check on a file that was made from `model_folder`; `on_event` hears of each as it ends.

    A check that fails is a result, not an error. Where llama.cpp is not installed its checks are "not run". Raises
    AfsError for a model folder that cannot be read.
    """
    began = time.monotonic()
    run = _Run(gguf, model_folder, file_type, depth, on_event or (lambda check: None), [])
    run.file_checks()
    if consumer_version():
        run.consumer_checks()
    else:
        run.skip(CONSUMER_CHECKS, INSTALL)
    elapsed_s = round(time.monotonic() - began, 2)
    return Verification(depth=depth, consumer=consumer_version(), checks=tuple(run.checks), elapsed_s=elapsed_s)


def demand(verification: Verification, where: Path) -> None:
    """Raise AfsError listing every check that failed."""
    if verification.failed:
        raise problems(
            [f"{check.name}: {check.reason}" for check in verification.failed],
            "the GGUF is not what the model folder is, so it was not kept",
            str(where),
            "report this with the lines above; --no-verify keeps the file all the same, for looking into it",
        )


@dataclass(frozen=True)
class _Run:
    path: Path
    folder: Path
    file_type: GgufType
    depth: Depth
    on_event: OnCheck
    checks: list[Check]

    def file_checks(self) -> None:
        try:
            opened = open_both(self.path, self.folder)
        except UnreadableError as error:
            self._add(Check(name="structure", status="failed", reason=str(error)))
            self.skip(("tensors",), "the file cannot be read")
            return
        self._add(check_structure(opened, self._tokenizer(), self.file_type))
        self._add(check_weights_of(opened, thorough=self.depth == "thorough"))

    def consumer_checks(self) -> None:
        began = time.monotonic()
        try:
            with Llama(self.path, CONTEXT_TOKENS) as llama:
                seconds = round(time.monotonic() - began, 2)
                self._add(Check(name="loading", status="passed", figures={"seconds": seconds}))
                self._ask(llama)
        except LlamaError as error:
            self._broke_off(f"llama.cpp {error}")
        except (KeyError, IndexError, TypeError) as error:
            self._broke_off(f"llama.cpp answers in a form that is not known: {type(error).__name__} {error}")

    def _ask(self, llama: Llama) -> None:
        tokenizer, effort, tolerance = self._tokenizer(), EFFORTS[self.depth], TOLERANCES[self.file_type]
        self._add(check_tokens(llama, self.folder, effort.strings))
        self._add(check_template(llama, tokenizer))
        self._add(check_ends(llama, sorted(tokenizer.eos_token_ids)))
        measured = measure(llama, self.folder, tokenizer, effort, CONTEXT_TOKENS)
        self._add(check_log_probabilities(measured, tolerance))
        self._add(check_greedy(measured, tolerance, effort))

    def _broke_off(self, reason: str) -> None:
        """The check that llama.cpp was busy with has failed, the later ones are not run."""
        done = {check.name for check in self.checks}
        left = [name for name in CONSUMER_CHECKS if name not in done]
        self._add(Check(name=left[0], status="failed", reason=reason))
        self.skip(left[1:], f"{left[0]} failed")

    def skip(self, names: Sequence[str], reason: str) -> None:
        for name in names:
            self._add(Check(name=name, status="not run", reason=reason))

    def _add(self, check: Check) -> None:
        self.checks.append(check)
        self.on_event(check)

    def _tokenizer(self) -> TokenizerWrapper:
        try:
            ends = load_config(self.folder).get("eos_token_id")
            options = {"trust_remote_code": False, "local_files_only": True}
            tokenizer: TokenizerWrapper = load_tokenizer(self.folder, options, eos_token_ids=ends)
        except (ValueError, TypeError, KeyError, AttributeError, OSError, RuntimeError, ImportError) as error:
            raise AfsError(
                f"transformers cannot load the tokenizer: {error}", str(self.folder), "make the model folder again"
            ) from error
        return tokenizer
