"""tools/convert_annotations.py: its files, messages and status."""

import json

import pytest
from convert_annotations import main

GOOD = {"id": 1, "conversations": [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello."}]}


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "llava.json"
    file.write_text(json.dumps([GOOD, {"id": 2}, GOOD]))
    return file


def test_a_bad_row_ends_the_conversion_at_its_place_and_writes_nothing(source, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main([str(source), str(tmp_path / "out.jsonl"), "--from", "llava"])
    assert end.value.code == 2 and "llava.json:item 2: conversations is None" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [source]


def test_bad_rows_are_left_out_and_counted_when_asked(source, tmp_path, capsys):
    out, meta = tmp_path / "out.jsonl", tmp_path / "meta.json"
    main([str(source), str(out), "--from", "llava", "--skip-bad", "--meta", str(meta), "--root", "data/x/"])
    printed = capsys.readouterr()
    assert "llava.json:item 2" in printed.err and "Left out 1: conversations" in printed.out
    assert [json.loads(line) for line in out.read_text().splitlines()] == [GOOD, GOOD]
    entry = json.loads(meta.read_text())["out"]
    assert (entry["length"], entry["root"], entry["annotation"]) == (2, "data/x/", str(out))


def test_rows_become_messages_and_rows_again(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(GOOD) + "\n")
    main([str(tmp_path / "rows.jsonl"), str(tmp_path / "swift.jsonl"), "--to", "messages"])
    assert json.loads((tmp_path / "swift.jsonl").read_text())["messages"][0] == {"role": "user", "content": "Hi."}
    main([str(tmp_path / "swift.jsonl"), str(tmp_path / "back.jsonl"), "--from", "messages"])
    assert (tmp_path / "back.jsonl").read_text() == (tmp_path / "rows.jsonl").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--from and --to are both internvl"),
        (["--from", "csv", "--delimiter", "::"], "--delimiter: is '::'"),
        (["--from", "llava"], "out.jsonl: is there already"),
    ],
)
def test_mistakes_on_the_command_line_end_with_status_2(source, tmp_path, capsys, flags, message):
    (tmp_path / "out.jsonl").write_text("keep me")
    with pytest.raises(SystemExit) as end:
        main([str(source), str(tmp_path / "out.jsonl"), *flags])
    assert end.value.code == 2 and message in capsys.readouterr().err
    assert (tmp_path / "out.jsonl").read_text() == "keep me"
