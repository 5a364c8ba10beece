"""The one exception a user can mend, and the exit codes of every command."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What the shell sees."""

    OK = 0
    ERROR = 1
    USAGE = 2
    MISSING = 3  # a model or data is not on this machine
    REFUSED = 4  # by policy or by a gate
    INTERRUPTED = 130


class AfsError(Exception):
    """Something the user can mend: what happened, where, and how to fix it.

    `what` is a sentence without a full stop, `where` a file, line, key or argument, `fix` the next thing to do.
    """

    def __init__(self, what: str, where: str = "", fix: str = "", code: ExitCode = ExitCode.ERROR) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.fix = fix
        self.code = code

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.fix:
            lines.append(f"fix: {self.fix}")
        return "\n".join(lines)


class MissingError(AfsError):
    """A model or data set is not on this machine; exit code 3."""

    def __init__(self, what: str, where: str = "", fix: str = "") -> None:
        super().__init__(what, where, fix, ExitCode.MISSING)


class UsageError(AfsError):
    """The command was asked for something that does not exist; exit code 2."""

    def __init__(self, what: str, where: str = "", fix: str = "") -> None:
        super().__init__(what, where, fix, ExitCode.USAGE)


class RefusedError(AfsError):
    """A gate or a policy says no; exit code 4."""

    def __init__(self, what: str, where: str = "", fix: str = "") -> None:
        super().__init__(what, where, fix, ExitCode.REFUSED)


def problems(found: list[str], what: str, where: str = "", fix: str = "") -> AfsError:
    """One error that lists every problem of a file, the first 20 in full."""
    shown = [f"  {line}" for line in found[:20]]
    if len(found) > 20:
        shown.append(f"  … and {len(found) - 20} more")
    count = f"{len(found)} problem{'s' if len(found) != 1 else ''}"
    return AfsError(f"{what} ({count})\n" + "\n".join(shown), where, fix)


def closest(name: str, known: list[str]) -> str:
    """A remedy for a misspelt name: the nearest known one, or all of them."""
    import difflib

    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
