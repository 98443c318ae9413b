"""A person's own files: what is read from them, and the sentence for each thing that can be wrong with them."""

import json
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from client.data import SOURCES, Example, load
from configs.errors import InputError
from configs.scenario import Data, Fields

ROWS = [{"user": u, "prompt": f"{u}{i}?", "label": "ab"[i % 2], "when": 100 - i} for u in "xy" for i in range(12)]
TIMED = Fields(time="when")


def read(path: Path, task: Any = "choice", fields: Fields = TIMED, labels: tuple[str, ...] = ()) -> dict[str, list[Example]]:
    return SOURCES["files"].read(Data(name="files", path=str(path), task=task, fields=fields, labels=labels))


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def as_parquet(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def as_csv(path: Path) -> Path:
    lines = [",".join(ROWS[0]), *(",".join(map(str, row.values())) for row in ROWS)]
    path.write_text("\n".join(lines) + "\n")
    return path


def as_folder(path: Path) -> Path:
    path.mkdir()
    for user in "xy":
        write(
            path / f"{user}.jsonl",
            [{k: v for k, v in row.items() if k != "user"} for row in ROWS if row["user"] == user],
        )
    return path


def as_saved(path: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).save_to_disk(str(path))
    return path


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("rows.jsonl", lambda path: write(path, ROWS)),
        ("rows.csv", as_csv),
        ("rows.parquet", as_parquet),
        ("folder", as_folder),
        ("saved", as_saved),
    ],
)
def test_every_form_of_file_gives_the_same_users(name: str, make: Any, tmp_path: Path) -> None:
    found = read(make(tmp_path / name))
    told = {user: [(e.prompt, e.answer, e.time) for e in examples] for user, examples in found.items()}
    expected = {u: [(r["prompt"], r["label"], r["when"]) for r in ROWS if r["user"] == u] for u in "xy"}
    assert told == expected
    assert all(len({e.unit for e in examples}) == 12 for examples in found.values())  # every row is a unit of its own


def test_files_become_a_dataset_split_by_time(tokenizer: Any, tmp_path: Path) -> None:
    data = Data(name="files", path=str(write(tmp_path / "rows.jsonl", ROWS)), task="choice", fields=TIMED)
    dataset = load(data, tokenizer, 0)
    assert (dataset.labels, dataset.unit, list(dataset.users)) == (("a", "b"), "one row", ["x", "y"])
    splits = dataset.users["x"]
    told = [tokenizer.decode(e.ids) for e in (*splits.train, *splits.validation, *splits.test)]
    assert told == [f"x{i}?" for i in reversed(range(12))]  # the column says that the file is in reverse
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [8, 2, 2]


def test_without_a_time_column_the_order_of_the_file_is_the_order_in_time(tokenizer: Any, tmp_path: Path) -> None:
    data = Data(name="files", path=str(write(tmp_path / "rows.jsonl", ROWS)), task="choice")
    splits = load(data, tokenizer, 0).users["x"]
    assert [tokenizer.decode(e.ids) for e in splits.train] == [f"x{i}?" for i in range(8)]


def test_columns_go_by_the_names_that_the_scenario_gives(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"who": 7, "says": "good morning"}])
    assert read(path, "text", Fields(user="who", text="says")) == {"7": [Example("", "good morning", 0.0, "1")]}


def test_an_answer_may_stand_without_a_prompt_but_not_a_prompt_without_an_answer(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"user": "u", "prompt": "", "answer": "yes"}])
    assert read(path, "answer", Fields()) == {"u": [Example("", "yes", 0.0, "1")]}
    with pytest.raises(InputError, match="row 1: 'answer' is empty"):
        read(write(path, [{"user": "u", "prompt": "?", "answer": " "}]), "answer", Fields())


SECONDS = datetime(2024, 5, 31, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (3, 3.0),
        ("881250949", 881250949.0),
        ("2024-05-31", SECONDS),
        ("2024-05-31T02:00:00+02:00", SECONDS),
        ("2024-05-31T00:00:00Z", SECONDS),
    ],
)
def test_time_is_a_number_or_an_iso_date(value: Any, seconds: float, tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"user": "u", "text": "t", "when": value}])
    assert read(path, "text")["u"][0].time == seconds


@pytest.mark.parametrize("value", [date(2024, 5, 31), datetime(2024, 5, 31), datetime(2024, 5, 31, tzinfo=UTC)])
def test_dates_of_parquet_are_times(value: Any, tmp_path: Path) -> None:
    path = as_parquet(tmp_path / "x.parquet", [{"user": "u", "text": "t", "when": value}])
    assert read(path, "text")["u"][0].time == SECONDS


def test_a_document_in_csv_may_be_long_and_have_lines(tmp_path: Path) -> None:
    text = "a line\n" * 40_000
    (tmp_path / "x.csv").write_text(f'user,text\nu,"{text}"\nu,short\n')
    assert [e.answer for e in read(tmp_path / "x.csv", "text", Fields())["u"]] == [text, "short"]


def test_blank_lines_and_a_byte_order_mark_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'\xef\xbb\xbf{"user": "u", "text": "t"}\n\n\n{"user": "u", "text": "v"}\n')
    assert [e.unit for e in read(tmp_path / "x.jsonl", "text", Fields())["u"]] == ["1", "4"]


# What can be wrong


def refused(path: Path, sentence: str, **options: Any) -> None:
    with pytest.raises(InputError) as error:
        read(path, **options)
    assert str(error.value).replace(f"{path.parent}/", "") == sentence


def test_files_need_a_task_and_a_path(tokenizer: Any) -> None:
    with pytest.raises(InputError) as error:
        load(Data(name="files", path="somewhere"), tokenizer, 0)
    assert str(error.value) == "data.task must be text or answer or choice for data.name 'files', it is empty"
    with pytest.raises(InputError, match=r"data.path is empty: data.name 'files' needs a folder or a file"):
        load(Data(name="files", task="text"), tokenizer, 0)


def test_a_missing_file_gets_the_nearest_name(tmp_path: Path) -> None:
    write(tmp_path / "ratings.jsonl", [])
    refused(tmp_path / "rating.jsonl", "data.path 'rating.jsonl' does not exist (did you mean 'ratings.jsonl'?)")
    refused(tmp_path / "no" / "x.csv", "data.path 'x.csv' does not exist")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("text")
    refused(tmp_path / "x.txt", "data.path 'x.txt' must be a folder or end in .jsonl, .csv, .parquet")


def test_a_folder_without_users_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    sentence = "data.path 'empty' holds neither <user>.jsonl files nor a folder saved by 'datasets'"
    refused(tmp_path / "empty", sentence)


def test_no_examples_are_reported(tmp_path: Path) -> None:
    refused(write(tmp_path / "x.jsonl", []), "data.path 'x.jsonl' holds no examples")


def test_a_missing_column_gets_the_nearest_name(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"user": "u", "prompt": "p", "labels": "a", "when": 1}])
    sentence = "'x.jsonl' row 1 has no column 'label' (data.fields.label) (did you mean 'labels'?)"
    refused(path, sentence)
    path = write(tmp_path / "x.jsonl", [{"prompt": "p", "label": "a", "users": "b"}])
    refused(path, "'x.jsonl' row 1 has no column 'user' (data.fields.user) (did you mean 'users'?)")


def test_a_broken_line_is_named_by_file_and_line(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", ROWS[:2])
    path.write_text(path.read_text() + '{"user": "u", \n')
    with pytest.raises(InputError, match=r"x\.jsonl' row 3 is not JSON: "):
        read(path)
    refused(write(path, [ROWS[0], [1, 2]]), "'x.jsonl' row 2 must be a JSON object, got [1, 2]")


def test_a_label_that_is_not_among_the_labels_gets_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"user": "u", "prompt": "p", "label": "goood", "when": 1}])
    sentence = "'x.jsonl' row 1: label 'goood' is not among data.labels (did you mean 'good'?)"
    refused(path, sentence, labels=("good", "bad"))


@pytest.mark.parametrize("value", ["tomorrow", None, "nan", [1], "inf"])
def test_a_time_that_is_none_is_refused(value: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"user": "u", "text": "t", "when": value}])
    sentence = f"'x.jsonl' row 1: 'when' must be a number or an ISO date like 2024-05-31, got {value!r}"
    refused(path, sentence, task="text")


@pytest.mark.parametrize("value", [None, {"a": 1}])
def test_a_value_that_is_no_text_is_refused(value: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"user": "u", "text": value, "when": 1}])
    refused(path, f"'x.jsonl' row 1: 'text' must be a text or a number, got {value!r}", task="text")


def test_a_csv_row_that_is_too_short_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("user,text\nu,fine\nu\n")
    sentence = "'x.csv' row 3: 'text' must be a text or a number, got None"
    refused(tmp_path / "x.csv", sentence, task="text", fields=Fields())


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"user,text\nu,caf\xe9\n")
    refused(tmp_path / "x.csv", "'x.csv' is not UTF-8 text", task="text")


def test_a_broken_parquet_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_text("no parquet at all")
    with pytest.raises(InputError, match=r"x\.parquet' is not Parquet: "):
        read(tmp_path / "x.parquet")


def test_a_saved_folder_with_several_splits_asks_for_one(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path / "saved"))
    refused(tmp_path / "saved", "data.path 'saved' holds several splits (train, test): add one to the path")
    assert len(read(tmp_path / "saved" / "train")) == 2


def test_a_saved_folder_without_the_package_says_what_to_install(tmp_path: Path, monkeypatch: Any) -> None:
    path = as_saved(tmp_path / "saved")
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused(path, "data.path 'saved' needs the package 'datasets': pip install datasets")
