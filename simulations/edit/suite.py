"""What edits do, measured: whether they hold, how far they reach, and what they leave alone.

Each user is given edits against what their model says: a film that they are now to have liked, or not, or a whole genre. They stand
together. An edit is right where its prompts' likeliest answer is the new one; it generalizes where that of other prompts about the same
is (the film in other words; other films of the genre); it is local where the answers to other films stay, none of which C was taken
over.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

import torch

from client.data import encode
from client.data.movielens import TEMPLATE
from client.data.sources import SOURCES
from client.data.types import Encoded, Example
from client.editing.bench import Answer, Asked, Bench
from configs.errors import InputError
from strategies.editors.contract import Editor
from strategies.tree import State, generator

REWORDED = ("Film: {film}. Did this user like it?", "{film}\nThis user enjoyed it:")
SHOWN, HELD_OUT, OTHERS = 8, 16, 100  # films of a genre that an edit is made from and tried on; unrelated films
GENRES = ("Action", "Comedy", "Drama", "Horror", "Musical", "Romance", "Sci-Fi", "Thriller", "War", "Children's")


@dataclass(frozen=True)
class Case:
    """An edit with what it is tried on. All examples carry the new answer."""

    user: str
    edited: tuple[Encoded, ...]
    alike: tuple[Encoded, ...]
    others: tuple[Encoded, ...]


@dataclass(frozen=True)
class Film:
    """A film of the catalogue."""

    text: str
    encoded: Encoded
    genres: frozenset[str] = field(default_factory=frozenset)


def catalogue(bench: Bench) -> list[Film]:
    """All films. Raises `InputError` where the data has no such catalogue."""
    scenario = bench.node.scenario
    if scenario.data.name != "movielens" or not bench.node.dataset.label_ids or not (public := SOURCES["movielens"].public):
        raise InputError(f"data.name must be 'movielens' with a choice to measure edits on films, got '{scenario.data.name}'")
    tail = TEMPLATE.partition("{film}")[2]
    texts = [e.prompt.removesuffix(tail) for e in public(scenario.data)]
    return [
        Film(text, e, frozenset(text.rpartition(". ")[2].split(", "))) for text, e in zip(texts, bench.node.dataset.public, strict=True)
    ]


def cases(bench: Bench, users: Mapping[str, State], each: int, part: str, kind: str) -> list[Case]:
    """So many edits of each user, drawn by the scenario's seed, every one against what the user's model says now."""
    films, found = catalogue(bench), list[Case]()
    for user, state in users.items():
        draw = generator(bench.node.scenario.seed, user, "edits", kind)
        chosen = _films(bench, films, user, part, draw) if kind == "film" else _genres(films, draw)
        for edited, alike, others in list(chosen)[:each]:
            said = bench.answers([state], [{}], [edited])[0]
            votes = torch.stack([x.logp_PL[0] for x in said]).argmax(1).bincount(minlength=len(bench.node.dataset.label_ids))
            label = (int(votes.argmax()) + 1) % len(votes)
            found.append(Case(user, *(tuple(replace(e, label=label) for e in x) for x in (edited, alike, others))))
    return found


def _films(bench: Bench, films: Sequence[Film], user: str, part: str, draw: torch.Generator) -> Iterator[tuple[list[Encoded], ...]]:
    known = {film.encoded.ids.numpy().tobytes(): film for film in films}
    own: Sequence[Encoded] = getattr(bench.node.dataset.users[user], part)
    rated = {e.ids.numpy().tobytes() for e in own}
    for at in torch.randperm(len(own), generator=draw).tolist():
        film = known[own[at].ids.numpy().tobytes()]
        reworded = [Example(words.format(film=film.text), bench.node.dataset.labels[0], 0.0, "") for words in REWORDED]
        pieces = encode.encode(reworded, bench.node.base.tokenizer, "choice", bench.node.dataset.labels, 1 << 20)
        alike = [Encoded(*piece, unit=0) for made in pieces for piece in made]
        yield [own[at]], alike, _others([f for f in films[1::2] if f.encoded.ids.numpy().tobytes() not in rated], draw)


def _genres(films: Sequence[Film], draw: torch.Generator) -> Iterator[tuple[list[Encoded], ...]]:
    for at in torch.randperm(len(GENRES), generator=draw).tolist():
        of = [film.encoded for film in films if GENRES[at] in film.genres]
        order = [of[i] for i in torch.randperm(len(of), generator=draw).tolist()]
        others = _others([film for film in films[1::2] if GENRES[at] not in film.genres], draw)
        yield order[:SHOWN], order[SHOWN : SHOWN + HELD_OUT], others


def _others(films: Sequence[Film], draw: torch.Generator) -> list[Encoded]:
    return [films[i].encoded for i in torch.randperm(len(films), generator=draw).tolist()[:OTHERS]]


# ------------------------------------------------------------------ measuring
def learnt(bench: Bench, users: Mapping[str, State], found: Sequence[Case], editor: Editor) -> tuple[dict[str, State], float]:
    """What each user's edits come to, and seconds for each edit."""
    began = time.perf_counter()
    seed = bench.node.scenario.seed
    asked = [Asked(users[case.user], case.edited, (seed, "edit")) for case in found]
    states = bench.learn(editor, asked, bench.node.dataset.public[::2])
    own = {user: [s for s, case in zip(states, found, strict=True) if case.user == user] for user in users}
    changes: dict[str, State] = {user: editor.merge(mine) if mine else {} for user, mine in own.items()}
    return changes, (time.perf_counter() - began) / len(found)


def said(bench: Bench, users: Mapping[str, State], found: Sequence[Case], changes: Mapping[str, State]) -> list[list[list[Answer]]]:
    """Of each case what the user's model with these changes says to the edited prompts, those alike, and unrelated ones."""
    return [
        [bench.answers([users[x.user]], [changes.get(x.user, {})], [part])[0] for part in (x.edited, x.alike, x.others)] for x in found
    ]


def measure(before: Sequence[list[list[Answer]]], after: Sequence[list[list[Answer]]]) -> dict[str, float]:
    """Efficacy, generality, locality and KL, each a mean over edits, of what is `said` without changes and with them."""
    pairs = [list(zip(old[2], new[2], strict=True)) for old, new in zip(before, after, strict=True)]
    return {
        "efficacy": fmean(fmean(x.right() for x in new[0]) for new in after),
        "generality": fmean(fmean(x.right() for x in new[1]) for new in after),
        "locality": fmean(fmean(x.like(y) for x, y in each) for each in pairs),
        "kl": fmean(fmean(x.kl(y) for x, y in each) for each in pairs),
    }
