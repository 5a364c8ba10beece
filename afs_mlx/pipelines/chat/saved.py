"""Saved conversations: one JSON file each in the user's state folder, for nobody else to read."""

import re
import unicodedata
from pathlib import Path

from afs_mlx.core.config import validate
from afs_mlx.core.errors import AfsError, MissingError, UsageError, closest
from afs_mlx.core.files import disk_error, read_json, write_json
from afs_mlx.core.paths import state_folder
from afs_mlx.schema.session import SavedSession

# A file name everywhere, and nothing that a terminal or a path reads otherwise.
NAME = re.compile(r"[\w][\w .-]{0,62}[\w]|[\w]")
MOST_BYTES = 64_000_000


class SavedSessions:
    """The conversations of this person."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or state_folder() / "chats"

    def names(self) -> list[str]:
        """What can be loaded, in order; files with names that we would not give are none."""
        try:
            found = [path.stem for path in self.folder.iterdir() if path.suffix == ".json"]
        except OSError:
            return []
        return sorted(name for name in found if NAME.fullmatch(name))

    def path(self, name: str) -> Path:
        """The file of a name; raises UsageError for what is no name."""
        name = unicodedata.normalize("NFC", name)
        if not NAME.fullmatch(name):
            raise UsageError(f"{name!r} is no name for a conversation", "", "letters, digits, spaces, dots and hyphens")
        return self.folder / f"{name}.json"

    def has(self, name: str) -> bool:
        """Whether there is one of that name."""
        return self.path(name).exists()

    def save(self, name: str, session: SavedSession) -> Path:
        """Write it whole, in place of an older one of that name."""
        path = self.path(name)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.folder.chmod(0o700)
        except OSError as error:
            raise disk_error(error, self.folder) from error
        turns = [message.as_dict() for message in session.messages]
        write_json(path, {**session.model_dump(mode="json", exclude={"messages"}), "messages": turns})
        path.chmod(0o600)
        return path

    def load(self, name: str) -> SavedSession:
        """Read one; raises MissingError that names what is there, AfsError for a file that is no conversation."""
        path = self.path(name)
        if not path.is_file():
            fix = closest(name, self.names()) if self.names() else "nothing was saved yet: /save NAME"
            raise MissingError(f"there is no saved conversation {name!r}", str(self.folder), fix)
        if path.stat().st_size > MOST_BYTES:
            raise AfsError("the file is too large for a conversation", str(path), "load another one")
        return validate(SavedSession, read_json(path, "the saved conversation"), str(path))
