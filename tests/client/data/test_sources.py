"""The built-in sources: who the users are, what an example is, and the sentence for a source that is not there."""

import dataclasses
import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from client.data import SOURCES, Dataset, load, split
from configs.errors import InputError
from configs.scenario import Data

FEW = Data(users=6, unseen_users=3)


def test_every_user_and_rating_of_movielens_is_there(movielens: Dataset) -> None:
    assert len(movielens.users) == 943
    assert sum(len(s.train) + len(s.validation) + len(s.test) for s in movielens.users.values()) == 100_000


def test_films_are_named_as_people_name_them() -> None:
    prompts = {example.prompt for found in SOURCES["movielens"].read(Data()).values() for example in found}
    assert "Toy Story (1995). Animation, Children's, Comedy. Liked:" in prompts
    assert "The Usual Suspects (1995). Crime, Thriller. Liked:" in prompts
    assert "The Horseman on the Roof (1995). Drama. Liked:" in prompts
    assert not [prompt for prompt in prompts if "unknown" in prompt]


def test_a_film_is_liked_from_four_stars_on() -> None:
    read = SOURCES["movielens"].read(Data())
    found = {(user, example.unit): example.answer for user, examples in read.items() for example in examples}
    assert found["196", "242"] == "No"  # three stars
    assert found["298", "474"] == "Yes"  # four stars


def test_labels_of_the_scenario_replace_those_of_movielens(tokenizer: Any) -> None:
    dataset = load(dataclasses.replace(FEW, labels=("Good", "Bad")), tokenizer, 0)
    assert dataset.labels == ("Good", "Bad")
    assert dataset.label_ids == tuple(tokenizer(f" {label}")["input_ids"][0] for label in dataset.labels)
    with pytest.raises(InputError, match=r"data.labels must be two for 'movielens'"):
        load(dataclasses.replace(FEW, labels=("a", "b", "c")), tokenizer, 0)


def test_a_president_is_a_user_and_an_address_a_unit() -> None:
    read = SOURCES["state_of_the_union"].read(Data())
    assert len(read) == 45
    washington = read["washington"]
    assert [example.unit for example in washington][:2] == ["1790-Washington-1", "1790-Washington-2"]
    assert washington[0].time < washington[1].time
    assert washington[0].answer.startswith("Fellow-Citizens of the Senate")


def test_speakers_of_two_plays_are_two_users_and_say_no_stage_directions() -> None:
    read = SOURCES["shakespeare"].read(Data())
    assert sum(user.endswith(".first-lord") for user in read) > 1
    words = "\n".join(example.answer for found in read.values() for example in found)
    assert "Enter PAGE" not in words
    assert not set("*\\[") & set(words)
    shallow = read["the-merry-wives-of-windsor.shallow"]
    assert shallow[0].answer.startswith("Sir Hugh, persuade me not; I will make a Star-\nchamber matter of it")
    assert "\n\nAy, cousin Slender, and 'Custalourum." in shallow[0].answer


ENTRY = """{package} ({version}) unstable; urgency=medium

  [ Somebody Else ]
  * {text}, thanks to a friend <friend@example.org>

 -- Jane Doe <jane@example.org>  Thu, {day:02d} May 2023 17:54:35 +0200

"""


def write_changelogs(folder: Path, names: Sequence[str] = ("one", "two"), entries: int = 12) -> None:
    days = range(entries, 0, -1)  # the newest entry stands first
    text = "".join(ENTRY.format(package="p", version=day, text=f"Change {day}", day=day) for day in days)
    for name in names:
        with gzip.open(folder / f"{name}.gz", "wt") as file:
            file.write(text)


def test_debian_maintainers_go_by_a_pseudonym_and_their_entries_by_date(tmp_path: Path) -> None:
    write_changelogs(tmp_path)
    with gzip.open(tmp_path / "upstream.gz", "wt") as file:
        file.write("Version 1.2\n\n * no changelog of Debian's\n")
    read = SOURCES["debian_changelogs"].read(Data(name="debian_changelogs", path=str(tmp_path)))
    ((user, examples),) = read.items()
    assert user.startswith("maintainer-") and "jane" not in user.lower()
    texts = [example.answer for example in split.in_order(examples)]
    assert texts == [f"* Change {day}, thanks to a friend" for day in range(1, 13)]  # each once, no names, no trailer


def test_debian_without_changelogs_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no Debian changelogs \(\*\.gz\) are in .*set data.path"):
        SOURCES["debian_changelogs"].read(Data(path=str(tmp_path)))
    (tmp_path / "broken.gz").write_text("this is not gzip")
    with pytest.raises(InputError, match=r"changelog '.*broken\.gz' cannot be unpacked"):
        SOURCES["debian_changelogs"].read(Data(path=str(tmp_path)))


def test_an_unknown_source_gets_the_nearest_name(tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"unknown data 'movilens' \(did you mean 'movielens'\?\)"):
        load(Data(name="movilens"), tokenizer, 0)


def test_a_source_refuses_a_task_that_it_is_not_made_for(tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"data.task must be text for data.name 'shakespeare', got 'choice'"):
        load(Data(name="shakespeare", task="choice"), tokenizer, 0)


def test_a_choice_can_be_asked_as_an_answer(tokenizer: Any) -> None:
    dataset = load(Data(users=1, task="answer"), tokenizer, 0)
    piece = next(iter(dataset.users.values())).train[0]
    assert tokenizer.decode(piece.ids[piece.start :]) in (f" Yes{tokenizer.eos_token}", f" No{tokenizer.eos_token}")
    assert (dataset.labels, dataset.label_ids, piece.label) == ((), (), -1)
