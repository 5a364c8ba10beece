"""What the checks of an exported file found: pure data, for the manifest, `--json` and the screen."""

from typing import Literal

from pydantic import Field

from afs_mlx.core.config import StrictModel

type Depth = Literal["quick", "thorough"]
type Verify = Literal["quick", "thorough", "none"]
type Status = Literal["passed", "failed", "reported", "not run"]


class Check(StrictModel):
    """One check. `reported`: measured, and not a reason to refuse the file for its type; `not run` has a reason.

    `differences` are known ones that do not count, each with its reason.
    """

    name: str
    status: Status
    reason: str = ""
    figures: dict[str, float | int | str] = Field(default_factory=dict)
    differences: tuple[str, ...] = ()


class Verification(StrictModel):
    """Every check of one file, in order. `consumer` names the program that ran it, empty where none is installed."""

    depth: Depth
    consumer: str = ""
    checks: tuple[Check, ...]
    elapsed_s: float = Field(ge=0)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that speak against the file."""
        return tuple(check for check in self.checks if check.status == "failed")

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against the file; checks that were not run do not."""
        return not self.failed

    @property
    def complete(self) -> bool:
        """Whether every check was run."""
        return all(check.status != "not run" for check in self.checks)
