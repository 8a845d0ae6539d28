"""One spelling of flags for every command."""

import pytest

from internvl.cli import Parser


@pytest.fixture
def parser():
    parser = Parser(prog="tool")
    parser.add_argument("--allow-outside-root", action="store_true")
    parser.add_argument("--out-dir")
    parser.add_argument("--true", dest="names", nargs="*")
    parser.add_argument("rest", nargs="*")
    return parser


@pytest.mark.parametrize("flag", ["--allow-outside-root", "--allow_outside_root"])
@pytest.mark.parametrize(
    ("words", "expected"),
    [([], True), (["True"], True), (["true"], True), (["False"], False), (["other"], True)],
)
def test_switches_take_dashes_underscores_and_a_word(parser, flag, words, expected):
    args = parser.parse_args([flag, *words])
    assert args.allow_outside_root is expected
    assert args.rest == (["other"] if words == ["other"] else [])


def test_values_are_left_alone(parser):
    args = parser.parse_args(["--out_dir=a_b", "--allow_outside_root=False", "--", "--allow_outside_root"])
    assert args.out_dir == "a_b" and not args.allow_outside_root and args.rest == ["--allow_outside_root"]
    assert parser.parse_args(["--out_dir", "True"]).out_dir == "True"


def test_unknown_flags_are_refused_as_before(parser, capsys):
    with pytest.raises(SystemExit):
        parser.parse_args(["--allow_inside_root"])
    assert "unrecognized arguments: --allow_inside_root" in capsys.readouterr().err
