"""tools/convert_annotations.py: its files, messages and status."""

import json
import subprocess

import pytest

from internvl.commands.convert_annotations import main

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
    assert "llava.json:item 2" in printed.err and "Left out 1: unknown format" in printed.out
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


def test_a_meta_file_is_not_replaced_and_its_folder_is_made(source, tmp_path, capsys):
    out, meta = tmp_path / "out.jsonl", tmp_path / "new" / "meta.json"
    flags = [str(source), str(out), "--from", "llava", "--skip-bad", "--meta", str(meta)]
    main(flags)
    out.unlink()
    meta.write_text("keep me")
    with pytest.raises(SystemExit) as end:
        main(flags)
    assert end.value.code == 2 and "meta.json: is there already" in capsys.readouterr().err
    assert meta.read_text() == "keep me" and not out.exists()
    main([*flags, "--overwrite"])
    assert json.loads(meta.read_text())["out"]["length"] == 2


def test_a_meta_file_for_messages_is_refused(source, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main([str(source), str(tmp_path / "o"), "--from", "llava", "--to", "messages", "--meta", str(tmp_path / "m")])
    assert end.value.code == 2 and "--meta: is for a training here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "flags", "why"),
    [("[]", [], "none was found"), ('[{"id": 2}]', ["--skip-bad"], "all 1 were left out")],
)
def test_an_input_that_gives_no_row_is_a_mistake(source, tmp_path, capsys, content, flags, why):
    source.write_text(content)
    with pytest.raises(SystemExit) as end:
        main([str(source), str(tmp_path / "out.jsonl"), "--from", "llava", *flags])
    assert end.value.code == 2 and f"gives no row ({why})" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [source]


def test_the_command_line_runs_by_itself_and_ends_without_traceback(warm_python, repository, source, tmp_path):
    command = [warm_python, repository / "tools" / "convert_annotations.py", source, tmp_path / "out.jsonl"]
    bad = subprocess.run([*command, "--from", "llava"], capture_output=True, text=True)
    assert bad.returncode == 2 and bad.stderr.count("\n") == 1 and "llava.json:item 2" in bad.stderr
    good = subprocess.run([*command, "--from", "llava", "--skip-bad"], capture_output=True, text=True)
    assert good.returncode == 0 and good.stdout.startswith("Wrote 2 rows (text 2) to ")
