"""Where a node keeps what never leaves it: each user's private tensors, one file for each round that changed them.

A round is only final when the server has committed it. Until then the files of the round before stay, so that a run that
was stopped anywhere resumes from what it had, and a round that is repeated starts from where it started the first time.
"""

import hashlib
from pathlib import Path

from strategies.files import read_state, write_state
from strategies.tree import State


class PrivateStore:
    """Private states by user and round, under one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, user: str, before: int) -> State | None:
        """The user's newest state of a round earlier than ``before``; None if there is none."""
        rounds = [r for r in self._rounds(user) if r < before]
        return read_state(self._path(user, max(rounds))) if rounds else None

    def save(self, user: str, round_: int, state: State) -> None:
        """Keep the state that a user has after a round, and drop those that no resume can ask for any more."""
        write_state(self._path(user, round_), state)
        for old in sorted(r for r in self._rounds(user) if r < round_)[:-1]:
            self._path(user, old).unlink()

    def forget_after(self, round_: int) -> None:
        """Drop what rounds later than the last committed one have left behind."""
        for path in self.folder.glob("*/*.safetensors"):
            if int(path.stem) > round_:
                path.unlink()

    def _rounds(self, user: str) -> list[int]:
        return [int(path.stem) for path in self._path(user, 0).parent.glob("[0-9]*.safetensors")]

    def _path(self, user: str, round_: int) -> Path:
        return self.folder / folder_name(user) / f"{round_:06d}.safetensors"


def folder_name(user: str) -> str:
    """A file name for any user name: its safe characters, and a digest that keeps equal-looking names apart."""
    safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in user)[:40]
    return f"{safe}-{hashlib.blake2b(user.encode(), digest_size=4).hexdigest()}"
