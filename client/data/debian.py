"""Changelogs of Debian packages: what maintainers write about their work, dated.

The source reads the changelogs of the machine it runs on, so its users differ from machine to machine. Maintainers go
by a digest of their name. That keeps names out of reports and folders; it is a pseudonym and no anonymity, for whoever
has a list of maintainers can compute the same digests.
"""

import gzip
import hashlib
import re
import textwrap
import zlib
from collections.abc import Iterator
from datetime import UTC
from email.utils import parsedate_to_datetime
from pathlib import Path

from client.data.types import Example, Source
from configs.errors import InputError
from configs.scenario import Data

INSTALLED = Path("/usr/share/doc")

_HEADER = re.compile(r"^\S+ \([^()]+\) .*;")  # adduser (3.134) unstable; urgency=medium
_TRAILER = re.compile(r"^ -- (.*?) *<[^<>]*>  (.+)$")  # the maintainer and the date
_BYLINE = re.compile(r"^ *\[ [^\[\]]+ \] *\n", re.MULTILINE)  # [ another maintainer ]
_MAIL = re.compile(r"<[^<>\s]+@[^<>\s]+>")


def read(data: Data) -> dict[str, list[Example]]:
    """Return each maintainer's entries by date, without header and trailer.

    Looks for ``*.gz`` below ``data.path``, or at the changelogs of the installed packages. The packages that are built
    from one source carry the same entries: each is taken once.
    """
    root = Path(data.path) if data.path else INSTALLED
    paths = sorted(root.rglob("*.gz") if data.path else root.glob("*/changelog*.gz"))
    entries = {entry: text for path in paths for entry, text in _entries(path)}
    if not entries:
        raise InputError(f"no Debian changelogs (*.gz) are in '{root}': set data.path to a folder that has some")
    users: dict[str, list[Example]] = {}
    for (version, name, when), text in sorted(entries.items()):
        users.setdefault(_pseudonym(name), []).append(Example("", text, when, version))
    return users


def _entries(path: Path) -> Iterator[tuple[tuple[str, str, float], str]]:
    """Yield ((package and version, maintainer, seconds), text) of each entry that is well formed."""
    header, body = "", []
    for line in _lines(path):
        if _HEADER.match(line):
            header, body = " ".join(line.split()[:2]), []
        elif header and (found := _TRAILER.match(line)):
            text = _MAIL.sub("", _BYLINE.sub("", textwrap.dedent("".join(body)))).strip()
            when = _seconds(found[2])
            if text and when is not None:
                yield (header, found[1], when), text
            header = ""
        else:
            body.append(line)


def _lines(path: Path) -> list[str]:
    try:
        with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
            first = file.readline()  # upstream's own changelogs, the larger part, are seen to be none of Debian's here
            return [first, *file] if _HEADER.match(first) else []
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"changelog '{path}' cannot be unpacked: {error}") from None


def _seconds(date: str) -> float | None:
    try:
        when = parsedate_to_datetime(date)
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):  # a few old entries have dates of their own make
        return None


def _pseudonym(name: str) -> str:
    return f"maintainer-{hashlib.blake2b(name.casefold().encode(), digest_size=6).hexdigest()}"


SOURCE = Source(
    read,
    "text",
    (),
    "one changelog entry",
    "Debian changelogs of this machine, by maintainer; licences of the packages",
)
