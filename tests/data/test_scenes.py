"""Scenes: which sets share, which are held out, and that lines are copied as they are."""

import json
from collections import Counter

import pytest

from internvl.commands import check_data, split_by_scene
from internvl.data.row_groups import RowKey
from internvl.data.scenes import SharedScenes, choose_scenes, scenes_of
from internvl.errors import UserError

TURNS = [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "There, é."}]


@pytest.fixture
def rows(tmp_path):
    """30 rows of six scenes, of which the first has half; written with odd spaces, and no newline at the end."""
    lines = [
        json.dumps({"scene": f"s{max(0, number - 14) % 6}", "id": number, "conversations": TURNS}, ensure_ascii=False)
        for number in range(30)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n\n".join(lines).replace(": ", " : "), encoding="utf-8")
    return file


def test_a_split_has_every_line_once_and_no_scene_twice(rows, tmp_path, capsys):
    out = tmp_path / "deep" / "train.jsonl", tmp_path / "val.jsonl"
    split_by_scene.main([str(rows), *map(str, out), "--scene-key", "scene", "--share", "0.2"])
    written = [file.read_bytes().splitlines() for file in out]
    assert sorted(written[0] + written[1]) == sorted(line for line in rows.read_bytes().splitlines() if line)
    key = RowKey.parse("scene", "--scene-key")
    scenes = SharedScenes(*(scenes_of([file], key) for file in out))
    assert scenes.both == [] and scenes.evaluation.total() >= 6
    said = capsys.readouterr().out
    assert f"{len(written[1])} rows of {len(scenes.evaluation)} scenes" in said
    with pytest.raises(SystemExit, match="2"):
        split_by_scene.main([str(rows), *map(str, out), "--scene-key", "scene"])
    assert "is there already. Pass --overwrite" in capsys.readouterr().err


def test_a_scene_stays_where_it_is_when_rows_are_added():
    rows = Counter({f"s{number}": 10 for number in range(50)})
    chosen = choose_scenes(rows, 0.2, seed=0)
    assert len(chosen) == 10 and chosen != choose_scenes(rows, 0.2, seed=1)
    more = choose_scenes(rows | Counter({f"t{number}": 10 for number in range(10)}), 0.2, seed=0)
    assert len(chosen & more) >= 8


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--scene-key", "room"], "rows.jsonl:1: has no 'room', which rows are grouped by"),
        (["--scene-key", "scene", "--share", "1.5"], "--share: is 1.5. Give a share between 0 and 1"),
        (["--scene-key", "scene", "--share", "0.99"], "would take all 6 scenes"),
        (["--scene-key", "path:("], "--scene-key: '(' is not a regular expression"),
    ],
)
def test_what_cannot_be_split_is_refused_and_nothing_is_written(flags, words, rows, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        split_by_scene.main([str(rows), str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), *flags])
    assert words in capsys.readouterr().err and not (tmp_path / "a.jsonl").exists()


def test_check_data_counts_shared_scenes_and_refuses_them_where_asked(rows, tmp_path, tiny_base, capsys):
    metas = []
    lines = [line for line in rows.read_bytes().splitlines() if line]
    for name, part in (("train", lines[:20]), ("val", lines[18:])):
        (tmp_path / f"{name}.jsonl").write_bytes(b"\n".join(part))
        metas.append(tmp_path / f"{name}.json")
        content = {name: {"root": str(tmp_path), "annotation": str(tmp_path / f"{name}.jsonl")}}
        metas[-1].write_text(json.dumps(content))
    given = [str(metas[0]), "--model", str(tiny_base), "--scene-key", "scene", "--eval-meta", str(metas[1])]
    assert check_data.main([*given, "--out", str(tmp_path / "report.json")]) == 0
    report = json.loads((tmp_path / "report.json").read_text())["scenes"]
    assert report["train"] == 6 and set(report["both"]) == {f"s{number}" for number in range(6)}
    assert "6 scenes in training, 6 in evaluation, 6 in both with 12 of 12" in " ".join(
        capsys.readouterr().out.split()
    )
    with pytest.raises(SystemExit, match="2"):
        check_data.main([*given, "--strict-split"])
    assert "tools/split_by_scene.py ROWS TRAIN VAL --scene-key scene" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        check_data.main([*given[:3], "--strict-split"])


def test_one_scene_cannot_be_split():
    with pytest.raises(UserError, match="would take all 1 scenes"):
        choose_scenes(Counter({"s": 5}), 0.1, 0)
