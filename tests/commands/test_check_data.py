"""tools/check_data.py: what it prints, writes and returns."""

import json
import subprocess
from typing import NamedTuple

import pytest

from internvl.commands.check_data import main
from tests.conftest import make_image


def row(question: str, answer: str = "A cup.", **fields) -> str:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return json.dumps({**fields, "conversations": turns}) + "\n"


@pytest.fixture
def root(tmp_path):
    """Two good rows of each kind, twice the same one among them, and four bad ones; the meta file declares 9 rows."""
    (tmp_path / "frames").mkdir()
    for number in range(4):
        make_image(60, 60, number).save(tmp_path / "frames" / f"{number}.png")
    make_image(180, 60, 1).save(tmp_path / "wide.png")
    good = [
        row("Hello."),
        row("Hello."),
        row("<image>\nWhat?", image="wide.png"),
        row("<image>\nWhere?", image="wide.png"),
        row("<image> or <image>?", image=["wide.png"] * 2),
        row("<image> and <image>?", image=["wide.png"] * 2),
        row("<video>\nWhat?", video="frames"),
        row("<video>\nWhere?", video="frames"),
    ]
    bad = ["{broken\n", "{broken, too\n", row("<image>", image="none.png"), row("Hi.", "")]
    (tmp_path / "rows.jsonl").write_text("".join(good + bad))
    (tmp_path / "good.jsonl").write_text("".join(good))
    entry = {"root": str(tmp_path), "annotation": str(tmp_path / "rows.jsonl"), "length": 9}
    (tmp_path / "meta.json").write_text(json.dumps({"mixed": entry}))
    (tmp_path / "good.json").write_text(json.dumps({"mixed": {**entry, "annotation": str(tmp_path / "good.jsonl")}}))
    return tmp_path


class Result(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def check_data(tiny_base, capsys):
    """``check_data(META, "--flag", …)`` runs the tool in this process, on the tiny base."""

    def run(*arguments) -> Result:
        capsys.readouterr()
        try:
            status = main([*map(str, arguments), "--model", str(tiny_base)])
        except SystemExit as end:
            status = end.code
        return Result(status, *capsys.readouterr())

    return run


def test_the_command_line_ends_with_the_same_status(warm_python, repository, tiny_base, root):
    command = [warm_python, repository / "tools" / "check_data.py", root / "meta.json", "--model", tiny_base]
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)
    assert result.returncode == 2 and "4 rows cannot be trained on" in result.stdout
    assert "Traceback" not in result.stderr


def test_bad_rows_are_grouped_counted_and_end_with_status_2(check_data, root):
    result = check_data(root / "meta.json", "--out", root / "report.json")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "error: not JSON, 2 rows" in result.stdout and "error: missing image, 1 row" in result.stdout
    assert f"{root / 'rows.jsonl'}:9: is not valid JSON" in result.stdout
    assert "declares 9 rows; write 12" in result.stdout and "4 rows cannot be trained on" in result.stdout
    report = json.loads((root / "report.json").read_text())
    numbers = report["datasets"]["mixed"]
    assert numbers["kinds"] == {"text": 2, "image": 2, "images": 2, "video": 2}
    assert (numbers["rows"], numbers["errors"], numbers["duplicates"]) == (12, 4, 1)
    assert [problem["reason"] for problem in report["problems"]] == ["not JSON"] * 2 + [
        "missing image",
        "empty answer",
    ]


def test_good_rows_end_with_status_0_and_a_page_that_shows_each_kind(check_data, root):
    result = check_data(root / "good.json", "--preview", root / "p.html", "--preview-rows", 1)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Every row can be trained on." in result.stdout
    page = (root / "p.html").read_text()
    assert page.count("<article") == 4
    assert all(f'data-kind="{kind}"' in page for kind in ("text", "image", "images", "video"))


def test_clean_rows_are_written_apart_and_pass(check_data, root):
    before = (root / "rows.jsonl").read_bytes()
    result = check_data(root / "meta.json", "--write-clean", root / "clean")
    assert result.returncode == 2 and "8 good and 4 rejected rows" in result.stdout
    assert (root / "rows.jsonl").read_bytes() == before
    (good,) = [file for file in (root / "clean").glob("*.jsonl") if "rejected" not in file.name]
    assert good.read_bytes() == (root / "good.jsonl").read_bytes()
    assert json.loads((root / "clean" / "meta.json").read_text())["mixed"]["length"] == 8
    assert check_data(root / "clean" / "meta.json").returncode == 0
    again = check_data(root / "meta.json", "--write-clean", root / "clean")
    assert again.returncode == 2 and "is there already" in again.stderr


def test_only_deep_finds_what_a_header_hides(check_data, root):
    make_image(600, 300, 1).save(root / "wide.png")
    (root / "wide.png").write_bytes((root / "wide.png").read_bytes()[:2000])
    assert check_data(root / "good.json").returncode == 0
    result = check_data(root / "good.json", "--deep")
    assert result.returncode == 2 and "error: unreadable image, 4 rows" in result.stdout


def test_data_flags_of_a_training_change_what_is_judged(check_data, root):
    flags = ["--max_seq_length", "60", "--on_long_sample", "skip"]
    result = check_data(root / "good.json", *flags)
    assert result.returncode == 0 and "left out: longer than max_seq_length" in result.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max_seq_lenght", "60"], "there is no flag --max_seq_lenght"),
        (["--max_seq_length", "many"], "max_seq_length"),
        (["--on_long_sample", "shrink"], "on_long_sample"),
        (["--conv_style", "Hermes-2"], "--conv_style: is 'Hermes-2'"),
        (["--max_num_frame", "3"], "--max_num_frame: is 3"),
    ],
)
def test_mistakes_in_flags_end_with_status_2_and_one_message(check_data, root, flags, message):
    result = check_data(root / "good.json", *flags)
    assert result.returncode == 2 and "Traceback" not in result.stderr and message in result.stderr
