"""What rows belong together by: a field, a part of a path, a pattern in it."""

import pytest

from internvl.data.problems import RowError
from internvl.data.row_groups import RowKey
from internvl.errors import UserError

ROW = {"scene_id": 17, "info": {"episode": "e3"}, "image": ["scene_07/rgb/0000.png", "scene_07/rgb/0001.png"]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("scene_id", "17"),
        ("info.episode", "e3"),
        ("path:0", "scene_07"),
        ("path:-1", "0000.png"),
        (r"path:scene_(\d+)", "07"),
        ("path:rgb", "rgb"),
    ],
)
def test_a_key_finds_its_group(text, expected):
    assert RowKey.parse(text, "--cluster").of(ROW, "a:1") == expected


def test_videos_and_windows_paths_are_read_alike():
    assert RowKey.parse("path:0", "--cluster").of({"video": "s1\\clip.mp4"}, "a:1") == "s1"
    assert RowKey.parse("path:0", "--cluster").of({"image": {"path": "s1/a.png", "bytes": None}}, "a:1") == "s1"


@pytest.mark.parametrize(
    ("text", "row", "words"),
    [
        ("episode", ROW, r"a:1: has no 'episode', which rows are grouped by\. Add the key, or name another one"),
        ("info", ROW, "has no 'info'"),
        ("path:7", ROW, r"the path 'scene_07/rgb/0000\.png' has no part 7"),
        ("path:kitchen", ROW, "does not hold 'kitchen'"),
        ("path:0", {"text": "hi"}, "has no image or video"),
    ],
)
def test_a_row_that_does_not_say_is_named(text, row, words):
    with pytest.raises(RowError, match=words):
        RowKey.parse(text, "--cluster").of(row, "a:1")


@pytest.mark.parametrize(
    ("text", "words"), [("", "is empty"), ("path:", "comes without"), ("path:(", "not a regular")]
)
def test_what_is_no_key_is_refused_by_the_flags_name(text, words):
    with pytest.raises(UserError, match=f"--cluster: .*{words}"):
        RowKey.parse(text, "--cluster")
