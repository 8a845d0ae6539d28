"""tools/watch.py: the pages of runs side by side."""

import os
import re

import pytest

from internvl.commands import watch


@pytest.fixture
def runs(tmp_path):
    for number, name in enumerate(["old", "a <b>run", "new"]):
        (tmp_path / "log" / name).mkdir(parents=True)
        (tmp_path / "log" / name / "run.html").write_text("a run")
        os.utime(tmp_path / "log" / name / "run.html", (1000 + number, 1000 + number))
    return tmp_path / "log"


def test_runs_are_shown_the_newest_first_by_links_that_lead_to_them(runs, capsys):
    watch.main([str(runs)])
    page = runs / "watch.html"
    assert capsys.readouterr().out.strip() == str(page)
    text = page.read_text()
    assert re.findall(r'iframe src="([^"]*)"', text) == ["new/run.html", "a &lt;b&gt;run/run.html", "old/run.html"]
    assert "3 runs, found" in text and "<b>" not in text
    assert all((runs / link).is_file() for link in ("new/run.html", "old/run.html"))


def test_only_some_are_shown_in_another_place(runs, tmp_path):
    watch.main([str(runs), "--most", "1", "--out", str(tmp_path / "deep" / "w.html")])
    text = (tmp_path / "deep" / "w.html").read_text()
    assert re.findall(r'iframe src="([^"]*)"', text) == ["../log/new/run.html"] and "1 of 3 runs" in text


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["missing"], "there is no such folder. Name the folder of your trainings"),
        (["."], "holds no run.html, which a training writes as it starts"),
        ([".", "--most", "0"], "--most: is 0"),
    ],
)
def test_what_cannot_be_shown_is_named(flags, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        watch.main(flags)
    assert words in capsys.readouterr().err
