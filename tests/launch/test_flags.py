"""Flags that a launcher acts on, and paths from the folder where they were typed."""

import pytest

from internvl.errors import UserError
from internvl.launch.flags import Paths, is_on, make_parser, names_of, read_flags


def test_known_flags_are_taken_out_and_other_words_keep_their_order():
    words = ["--seed", "3", "--output-dir=a b", "--lora_dropout=0.0", "--meta_path", "m", "--x", "-1", "--y"]
    words += ["--output_dir", "c"]
    known, rest = read_flags(make_parser(["output_dir", "meta_path"]), words)
    assert known == {"output_dir": "c", "meta_path": "m"}, "the last one counts, as in the finetune script"
    assert rest == ["--seed", "3", "--lora_dropout=0.0", "--x", "-1", "--y"]
    assert names_of(words) == {"seed", "output_dir", "lora_dropout", "meta_path", "x", "y"}


@pytest.mark.parametrize("words", [["--output_dir"], ["--output-dir", "--seed", "1"]])
def test_a_flag_without_its_value_is_refused(words):
    with pytest.raises(UserError, match="--output_dir: has no value. Write it after the flag: --output_dir VALUE."):
        read_flags(make_parser(["output_dir"]), words)


def test_paths_are_those_of_the_folder_where_the_command_was_typed(tmp_path):
    root, here = tmp_path / "root", tmp_path / "here"
    (here / "mine").mkdir(parents=True)
    root.mkdir()
    elsewhere, at_home = Paths(here, root), Paths(root, root)
    assert elsewhere.input("mine") == f"{here}/mine"
    assert elsewhere.input("shell") == "shell", "not there, so the one of the repository"
    assert elsewhere.output("out/") == f"{here}/out/"
    assert at_home.output("out") == "out"
    for paths in (elsewhere, at_home):
        assert paths.input("/abs") == "/abs" == paths.output("/abs")
        assert paths.input("-x") == "./-x"
    assert at_home.output("-x") == "./-x"


@pytest.mark.parametrize(("value", "expected"), [("1", 1), ("True", 1), ("yes", 1), ("", 0), ("no", 0), ("FALSE", 0)])
def test_switches(value, expected):
    assert is_on(value) is bool(expected) and is_on(None) is False
