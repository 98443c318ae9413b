"""Files for their owner alone (0600 in folders of 0700, whatever the umask), whole or not there, and on disk when asked to be.

``flush=False`` leaves the last of these out: a kill still loses nothing, a loss of power may.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from configs.errors import InputError

GONE = ".gone"  # how the name of a folder ends that is being removed


def write(path: Path, data: bytes, flush: bool = True) -> None:
    """Replace a file at once. That its name is on disk takes a `settle`, one for all files of a folder."""
    with _scratch(path, data, flush) as scratch:
        scratch.replace(path)


def create(path: Path, data: bytes) -> bool:
    """Write a file where there is none, at once; False where another process was faster, whose file then stays."""
    with _scratch(path, data, True) as scratch:
        try:
            os.link(scratch, path)
        except FileExistsError:
            return False
        finally:
            scratch.unlink()
    settle(path.parent)
    return True


def publish(scratch: Path, path: Path) -> None:
    """Give a finished file its name, on the same file system."""
    settle(scratch)
    scratch.replace(path)
    settle(path.parent)


def make(folder: Path) -> None:
    """Make a folder, and those above it that are missing."""
    if folder.is_dir():
        return
    make(folder.parent)
    with suppress(FileExistsError):  # another process was faster
        folder.mkdir(mode=0o700)
        folder.chmod(0o700)


def remove(folder: Path) -> None:
    """Remove a folder of files: at once from where it was, and then piece by piece. What a kill leaves of it, `sweep` takes away."""
    gone = folder.with_name(f".{folder.name}.{os.getpid()}{GONE}")
    folder.rename(gone)
    settle(gone.parent)
    _empty(gone)


def sweep(folder: Path, name: str = "*") -> None:
    """Take away what kills have left in a folder of folders: of all, or of the one ``name``."""
    for left in folder.glob(f".{name}.*{GONE}"):
        _empty(left)
    for left in (*folder.glob(f".{name}.*.tmp"), *folder.glob(f"{name}/.*.tmp")):
        left.unlink(missing_ok=True)


def clear(folder: Path, prefix: str) -> None:
    """Remove folders with all that is in them, by how their names begin."""
    for left in folder.glob(f"{prefix}*"):
        shutil.rmtree(left)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def settle(path: Path) -> None:
    """Bring a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Say in a sentence that a file cannot be written."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}; what was there before stays") from error


@contextmanager
def _scratch(path: Path, data: bytes, flush: bool) -> Iterator[Path]:
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            if flush:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        yield scratch
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
