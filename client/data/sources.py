"""The registry of sources: ``data.name`` -> where users come from."""

from client.data import debian, files, movielens, shakespeare, sotu
from client.data.types import Source

SOURCES: dict[str, Source] = {
    "movielens": movielens.SOURCE,
    "state_of_the_union": sotu.SOURCE,
    "shakespeare": shakespeare.SOURCE,
    "debian_changelogs": debian.SOURCE,
    "files": files.SOURCE,
}
