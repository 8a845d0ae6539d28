"""Help in groups: every flag is in one of them, under the title of its dataclass."""

import re
from dataclasses import fields

import pytest

from internvl.train.argument_parser import OFTEN_SET, RENAMED_FLAGS
from internvl.train.arguments import ARGUMENT_GROUPS, DataArguments, FinetuneArguments, make_parser
from internvl.train.reward_arguments import RewardArguments


def sections(groups) -> dict[str, list[str]]:
    """Title → the flags below it."""
    found: dict[str, list[str]] = {}
    for line in make_parser(groups).format_help().splitlines():
        if re.match(r"\S.*:$", line):
            found[line[:-1]] = []
        elif flag := re.match(r"  (--\w+)", line):
            list(found.values())[-1].append(flag[1])
    return found


@pytest.mark.parametrize("groups", [ARGUMENT_GROUPS, (*ARGUMENT_GROUPS, RewardArguments)])
def test_every_flag_is_listed_once_under_its_group(groups):
    found = sections(groups)
    listed = [flag.removeprefix("--") for flags in found.values() for flag in flags]
    positive = [name for name in listed if not name.startswith("no_")]
    wanted = {one.name for group in groups for one in fields(group) if one.init}
    assert sorted(positive) == sorted(set(positive)) and set(positive) == wanted
    assert {name.removeprefix("no_") for name in listed} == wanted
    data = found[DataArguments.__doc__.splitlines()[0].rstrip(".")]
    assert {"--meta_path", "--use_thumbnail", "--no_use_thumbnail"} <= set(data)
    often = found["Of transformers' TrainingArguments, what is often set"]
    own = found[FinetuneArguments.__doc__.splitlines()[0].rstrip(".")]
    assert "--learning_rate" in often and "--on_nan" in own and "--on_nan" not in often
    assert {f"--{name}" for name in OFTEN_SET} - set(own) == set(often)


def test_what_is_often_set_are_flags_of_transformers():
    assert set(OFTEN_SET) <= {one.name for one in fields(FinetuneArguments)}
    assert {new.removeprefix("--") for new in RENAMED_FLAGS.values()} <= set(OFTEN_SET)
