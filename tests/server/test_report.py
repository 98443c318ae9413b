"""The report of a run folder made by hand: exact numbers, a page that stands alone, sentences for what is broken."""

import csv
import html
import io
import json
import math
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs
from rich.console import Console

from configs.errors import InputError
from configs.scenario import build, scenario_hash, to_yaml
from server.report import controls, tables
from server.report.files import read, read_users
from server.report.page import headline, rival, write_page
from server.report.promise import NONE
from server.report.summary import summarize, write_summary
from server.report.write import write

EVIL = "<img src=x onerror=\"console.error('escaped not')\">&</script>"
KEYS = {
    "name", "scenario_hash", "seed", "users", "rounds", "metric", "higher_is_better", "rows", "gains", "helped",
    "harmed", "bytes_up_per_user_round", "bytes_down_per_user_round", "seconds", "tokens_per_second", "epsilon",
    "dropped",
}  # fmt: skip
ROUNDS = [
    {"round": 1, "users": 3, "releases": 2, "dropped": {"not finite": 1}, "bytes_up": 300, "bytes_down": 600,
     "seconds": {"train": 3.0, "aggregate": 0.5}, "tokens": 100, "train_loss": 0.9, "update_norm": 1.0,
     "validation": {"shared": {"nll": 0.8, "auc": 0.5}, "shared_private": {"nll": 0.7, "auc": 0.6}}},
    {"round": 2, "users": 2, "releases": 2, "dropped": {"wrong keys": 1, "wrong shape": 1}, "bytes_up": 200,
     "bytes_down": 150, "seconds": {"train": 2.0}, "tokens": 80, "train_loss": 0.7, "update_norm": 0.5},
]  # fmt: skip
USERS = [
    {"user": "ada", "seen": True, "train": 70, "test": 20, "base.nll": 0.9, "shared.nll": 0.6, "shared.auc": 0.5,
     "shared.accuracy": 0.5, "shared_private.nll": 0.3, "shared_private.auc": 0.7, "shared_private.accuracy": 0.75},
    {"user": "bob [red]", "seen": True, "train": 20, "test": 9, "base.nll": 0.8, "shared.nll": 0.5, "shared.auc": 0.6,
     "shared.accuracy": 0.5, "shared_private.nll": 0.6, "shared_private.auc": 0.9, "shared_private.accuracy": 0.25},
    {"user": EVIL, "seen": True, "train": 7, "test": 3, "base.nll": 0.7, "shared.nll": 0.7, "shared.auc": "",
     "shared.accuracy": 0.5, "shared_private.nll": 0.3, "shared_private.auc": "", "shared_private.accuracy": 0.5},
    {"user": "dan", "seen": False, "train": 0, "test": 5, "base.nll": 1.0, "shared.nll": 0.8, "shared.auc": 0.4,
     "shared.accuracy": 0.5, "shared_private.nll": "", "shared_private.auc": "", "shared_private.accuracy": ""},
]  # fmt: skip
TIMING = {"seconds": {"load": 1.0, "data": 2.0, "train": 5.0}, "tokens": 180, "tokens_per_second": 36.0}


def write_run(directory: Path, users=USERS, rounds=ROUNDS, timing=TIMING, **scenario) -> Path:
    directory.mkdir()
    (directory / "scenario.yaml").write_text(to_yaml(build({"name": "toy", "seed": 3, **scenario})))
    (directory / "rounds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rounds))
    with (directory / "users.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(users[0]))
        writer.writeheader()
        writer.writerows(users)
    (directory / "timing.json").write_text(json.dumps(timing))
    return directory


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run")


def every_control(users=12):
    """Users with a value in every row."""
    cells = {f"{name}.nll": 0.9 - 0.05 * at for at, name in enumerate(controls.WORDS)}
    return [{"user": f"u{at}", "seen": True, "train": 5 + 9 * at, "test": 4}
            | {name: value + 0.01 * at * (1 + place % 3) for place, (name, value) in enumerate(cells.items())}
            for at in range(users)]  # fmt: skip


def text(table, width=240):
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(table)
    return console.export_text()


def own_html(page: Path) -> str:
    """The page without the plotting library."""
    return page.read_text().replace(get_plotlyjs(), "")


def test_summary_has_the_numbers_worked_out_by_hand(run):
    summary = summarize(run)
    half = 4.302652729911275 * math.sqrt(0.07) / math.sqrt(3)  # t with 2 degrees of freedom; -.3, .1, -.4
    assert summary["users"] == 3
    assert {name: row["mean"] for name, row in summary["rows"].items()} == pytest.approx(
        {"base": 0.8, "shared": 0.6, "shared_private": 0.4}
    )
    assert summary["rows"]["shared"]["worst_decile"] == pytest.approx(0.7)
    assert summary["rows"]["shared"]["auc"] == pytest.approx(0.55)
    assert summary["rows"]["shared_private"]["accuracy"] == pytest.approx(0.5)
    assert "auc" not in summary["rows"]["base"]
    gain = summary["gains"]["shared"]
    assert gain["mean"] == pytest.approx(-0.2)
    assert gain["ci95"] == pytest.approx([-0.2 - half, -0.2 + half])
    assert gain["p"] == pytest.approx(0.5)  # 4 of the 8 sign patterns are as far out
    assert gain["auc"]["mean"] == pytest.approx(0.25)
    assert gain["auc"]["ci95"] == pytest.approx([0.25 - 12.706204736 * 0.05, 0.25 + 12.706204736 * 0.05])
    assert (summary["helped"], summary["harmed"]) == (2, 1)
    assert (summary["bytes_up_per_user_round"], summary["bytes_down_per_user_round"]) == (100, 150)
    assert summary["dropped"] == 3


def test_summary_keeps_its_key_names(run):
    summary = summarize(run)
    assert set(summary) == KEYS | {"unseen"}
    assert (summary["metric"], summary["higher_is_better"], summary["epsilon"]) == ("nll", False, {})
    assert (summary["seconds"], summary["tokens_per_second"]) == (TIMING["seconds"], 36.0)
    assert (summary["seed"], summary["rounds"]) == (3, 2)
    assert summary["scenario_hash"] == scenario_hash(build({"seed": 3}))
    assert set(summary["gains"]) == {"base", "shared"}


def test_unseen_users_stand_apart(run):
    unseen = summarize(run)["unseen"]
    assert unseen["users"] == 1
    assert set(unseen["rows"]) == {"base", "shared"}
    assert unseen["rows"]["shared"] == {"mean": 0.8, "ci95": [None, None], "worst_decile": 0.8, "auc": 0.4,
                                        "accuracy": 0.5}  # fmt: skip


def test_without_unseen_users_there_is_no_such_key(tmp_path):
    assert set(summarize(write_run(tmp_path / "run", USERS[:3]))) == KEYS


def test_a_diverged_user_is_not_dropped_from_the_mean(tmp_path):
    users = [USERS[0] | {"shared_private.nll": "nan"}, *USERS[1:]]
    directory = write_run(tmp_path / "run", users)
    summary = json.loads(write_summary(directory).read_text())
    assert summary["rows"]["shared_private"]["mean"] is None
    assert (summary["helped"], summary["harmed"]) == (1, 2)
    assert "a loss is not finite" in own_html(write_page(directory))


def test_rows_come_in_their_fixed_order(tmp_path):
    users = [dict(reversed(user.items())) | {"own_idea.nll": 0.5} for user in every_control()]
    assert list(summarize(write_run(tmp_path / "run", users))["rows"]) == [*controls.WORDS, "own_idea"]


def test_summary_is_written_whole_or_not_at_all(run, monkeypatch):
    path = write_summary(run)
    before = path.read_text()
    (run / "timing.json").write_text('{"seconds": {"load": 99.0}}')

    def full(_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_summary(run)
    assert path.read_text() == before
    assert sorted(p.name for p in run.iterdir() if p.name not in ("summary.json",)) == [
        "rounds.jsonl", "scenario.yaml", "timing.json", "users.csv"]  # fmt: skip


def test_one_call_writes_both(run):
    assert write(run) == run / "report.html"
    assert json.loads((run / "summary.json").read_text()) == summarize(run)


def test_page_opens_with_what_is_promised_about_privacy(run):
    body = own_html(write_page(run)).split("<main>")[1]
    assert re.sub("<[^>]*>", "", body.strip().splitlines()[0]) == NONE


def test_page_loads_nothing(run):
    assert write_page(run).read_text().count(get_plotlyjs()) == 1
    page = own_html(write_page(run))
    for forbidden in ("<script src", "<link", "@import", "url(", "http:", "https:", "<iframe"):
        assert forbidden not in page, forbidden


def test_page_escapes_names(run):
    page = own_html(write_page(run))
    assert "<img" not in page
    assert "<td>&lt;img src=x onerror=" in page


def test_page_shows_every_control(tmp_path):
    page = own_html(write_page(write_run(tmp_path / "run", every_control())))
    for name in controls.WORDS:
        assert f"<td>{controls.words(name)}<small>{html.escape(controls.MEANING[name])}</small></td>" in page


def test_page_is_the_same_for_the_same_folder(run):
    assert write_page(run).read_text() == write_page(run).read_text()


@pytest.mark.parametrize("stopped", [True, False])
def test_page_warns_where_early_stopping_saw_the_learning_curve(tmp_path, stopped):
    directory = write_run(tmp_path / "run", private_training={"early_stopping": stopped})
    assert ("Early stopping chose on them" in own_html(write_page(directory))) == stopped


def test_page_lists_at_most_two_hundred_users(tmp_path):
    page = own_html(write_page(write_run(tmp_path / "run", every_control(230))))
    assert "The first 200 of 230 users" in page
    assert "<td>u199</td>" in page
    assert "<td>u200</td>" not in page


@pytest.mark.parametrize(
    ("ci95", "expected"),
    [([-0.3, -0.1], "saves 0.2000 nats"), ([-0.5, 0.1], "no clear difference"), ([None, None], "one user")],
)
def test_headline_claims_only_what_the_interval_allows(ci95, expected):
    gain = {"mean": -0.2, "ci95": ci95}
    assert expected in headline({"gains": {"shared": gain}}, "nats per choice")


def test_headline_says_when_private_costs():
    gain = {"mean": 0.2, "ci95": [0.1, 0.3]}
    assert "costs 0.2000 nats per token (95% interval 0.1000 to 0.3000)" in headline({"gains": {"shared": gain}}, "nats per token")


@pytest.mark.parametrize(("majority", "expected"), [(0.5, "majority"), (0.8, "user_bias"), (None, "user_bias")])
def test_the_simple_row_in_the_headline_is_the_strongest(majority, expected):
    means = {"base": 0.9, "majority": majority, "user_bias": 0.6}
    gains = {name: {"mean": -0.1, "ci95": [None, None]} for name in means}
    assert rival({"gains": gains, "rows": {name: {"mean": mean} for name, mean in means.items()}}) == expected


@pytest.mark.parametrize(
    "keep", [("base.nll",), ("shared.nll", "base.nll"), ("shared_private.nll",), ("shared.nll", "shared_private.nll")]
)
def test_any_subset_of_rows_makes_a_page(tmp_path, keep):
    users = [{key: user[key] for key in ("user", "seen", "train", "test", *keep)} for user in every_control(3)]
    directory = write_run(tmp_path / "run", users, [{**ROUNDS[1], "dropped": {}}])
    write(directory)
    assert set(json.loads((directory / "summary.json").read_text())["rows"]) == {name[:-4] for name in keep}


def test_controls_table_shows_every_row(tmp_path):
    shown = text(tables.controls_table(summarize(write_run(tmp_path / "run", every_control()))))
    assert all(name in shown for name in controls.WORDS.values())


def test_rounds_table_is_there_before_the_run_ends(run):
    (run / "users.csv").unlink()
    lines = text(tables.rounds_table(run)).splitlines()
    assert lines[1].split() == ["1", "3", "1", "0.9000", "0.8000", "0.7000", "0.1", "0.2", "3.5"]
    assert lines[2].split() == ["2", "2", "2", "0.7000", "-", "-", "0.1", "0.1", "2.0"]


def test_users_table_keeps_names_as_they_are_and_stops_at_the_limit(run):
    shown = text(tables.users_table(run, 2))
    assert "bob [red]" in shown
    assert "2 of 4 users" in shown
    assert "dan" not in shown
    assert "dan" in text(tables.users_table(run, 0))


def test_runs_are_compared_over_the_users_they_share(tmp_path, run):
    better = [user | {"shared_private.nll": user["shared_private.nll"] - 0.1 * at} for at, user in enumerate(USERS[:3])]
    better[0] = better[0] | {"user": "eve"}
    other = write_run(tmp_path / "other", better, aggregator="ffa")
    first, second = tables.compare_rows([run, other])
    assert first["against_first"] == {}
    assert second["against_first"]["shared_private"]["users"] == 2
    assert second["against_first"]["shared_private"]["mean"] == pytest.approx(-0.15)
    assert second["against_first"]["shared"]["mean"] == 0
    assert first["hash"] != second["hash"]
    assert second["seconds"] == 8.0
    shown = text(tables.compare_table([run, other]))
    assert "+0.1500" in shown
    assert second["hash"] in shown


def test_a_user_that_one_run_never_trained_on_is_not_compared(tmp_path, run):
    other = write_run(tmp_path / "other", [*USERS[:3], USERS[3] | {"seen": True}])
    for pair in ([run, other], [other, run]):
        assert tables.compare_rows(pair)[1]["against_first"]["shared"]["users"] == 3


def test_runs_on_other_data_are_not_subtracted(tmp_path, run):
    other = write_run(tmp_path / "other", data={"train": 0.5})
    assert tables.compare_rows([run, other])[1]["against_first"] == {}


def test_text_scored_by_two_models_is_not_subtracted(tmp_path):
    users = [{key: user[key] for key in ("user", "seen", "train", "test", "shared.nll")} for user in USERS]
    one = write_run(tmp_path / "one", users)
    other = write_run(tmp_path / "other", users, model={"name": "gpt2"})
    same = write_run(tmp_path / "same", users, seed=4)
    rows = tables.compare_rows([one, other, same])
    assert rows[1]["against_first"] == {}
    assert rows[2]["against_first"]["shared"]["users"] == 3


@pytest.mark.parametrize("name", ["scenario.yaml", "rounds.jsonl", "users.csv", "timing.json"])
def test_a_missing_file_is_named(run, name):
    (run / name).unlink()
    with pytest.raises(InputError, match=rf"{re.escape(str(run / name))} is missing"):
        summarize(run)


@pytest.mark.parametrize("read_it", [summarize, write_page, tables.rounds_table, lambda d: tables.compare_table([d])])
def test_a_missing_folder_is_named(tmp_path, read_it):
    with pytest.raises(InputError, match=r"no run folder '.*nowhere'"):
        read_it(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("scenario.yaml", "seeed: 1", "scenario.yaml: unknown key 'seeed'"),
        ("rounds.jsonl", '{"round": 1', "rounds.jsonl, line 1 is not JSON"),
        ("rounds.jsonl", "[1]", "rounds.jsonl, line 1 must hold one JSON object"),
        ("rounds.jsonl", '{"round": 1, "users": "x"}', "rounds.jsonl, line 1: 'users' must be a number, got 'x'"),
        ("users.csv", "", "users.csv has no column 'user'"),
        ("users.csv", "user,seen,train\n", "users.csv has no column 'test'"),
        ("users.csv", "user,seen,train,test\na,True,1\n", "users.csv: user 1 has 3 cells, the header 4"),
        ("users.csv", "user,seen,train,test\na,eh,1,2\n", "users.csv: column 'seen' must say True or False, got 'eh'"),
        ("users.csv", "user,seen,train,test\na,True,x,2\n", "users.csv: column 'train' must hold numbers, got 'x'"),
        ("users.csv", "user,seen,train,test\na,True,1,2\na,True,1,2\n", "users.csv names user 'a' twice"),
        ("timing.json", "{}", "timing.json: 'seconds' must hold seconds per part"),
        ("timing.json", "seconds", "timing.json is not JSON"),
    ],
)  # fmt: skip
def test_a_broken_file_gets_a_sentence(run, name, content, sentence):
    (run / name).write_text(content)
    with pytest.raises(InputError, match=re.escape(sentence)) as caught:
        summarize(run)
    assert "\n" not in str(caught.value)


def test_nothing_is_written_for_a_broken_folder(run):
    (run / "timing.json").unlink()
    with pytest.raises(InputError):
        write(run)
    assert not (run / "summary.json").exists()
    assert not (run / "report.html").exists()


def test_names_survive_commas_quotes_and_line_breaks(tmp_path):
    names = ['a,"b"', "c\nd", "e\u2028f", "ü"]
    directory = write_run(tmp_path / "run", [user | {"user": name} for user, name in zip(USERS, names, strict=True)])
    assert read_users(directory).names == tuple(names)
    assert read(directory).scenario.name == "toy"


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_draws_every_plot_without_a_complaint(run, tmp_path):
    page = write_page(run)
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}",
        "--enable-logging=stderr", "--virtual-time-budget=5000", "--window-size=1100,2000", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    names = re.findall(r'<div id="(\w+)" class="plotly-graph-div js-plotly-plot"', done.stdout)
    marks = {"learning": "js-line", "gains": "point", "examples": "point", "spread": "box", "traffic": "point",
             "clock": "point"}  # fmt: skip
    assert names == list(marks)
    for part, mark in zip(done.stdout.split("js-plotly-plot")[-len(names) :], marks.values(), strict=True):
        assert 'class="main-svg"' in part
        assert re.search(rf'<path class="{mark}[" ]|<g class="{mark}"><path', part)
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
