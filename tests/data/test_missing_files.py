"""What is said of a file that is not there: where it may be."""

import unicodedata
from pathlib import Path

import pytest

from internvl.data.media import read_image_size
from internvl.data.missing_files import entries, find_similar, subfolders
from internvl.data.problems import RowError
from tests.conftest import make_image

COMPOSED = unicodedata.normalize("NFC", "bär.jpg")
DECOMPOSED = unicodedata.normalize("NFD", "bär.jpg")


@pytest.fixture
def root(tmp_path):
    entries.cache_clear()
    subfolders.cache_clear()
    root = tmp_path / "photos"
    for name in ("train2017/x.jpg", "My Folder/a b.jpg", DECOMPOSED):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        make_image(30, 20, 1).save(root / name)
    return root


@pytest.mark.parametrize(
    ("name", "found", "words"),
    [
        (
            "train2017/train2017/x.jpg",
            "train2017/x.jpg",
            "without the folder 'train2017'. Correct the data",
        ),
        ("x.jpg", "train2017/x.jpg", "in the folder 'train2017'"),
        ("train2017/nested/../../x.jpg", None, "Check the path and the data set's root"),
        ("TRAIN2017/X.JPG", "train2017/x.jpg", "upper and lower case differ. Write it as the file is called"),
        ("train2017\\x.jpg", "train2017/x.jpg", "it has backslashes"),
        ("train2017/x.jpg ", "train2017/x.jpg", "it has spaces around it"),
        ("My%20Folder/a%20b.jpg", "My Folder/a b.jpg", "it is written as in an address"),
        (COMPOSED, DECOMPOSED, "the Unicode form of the name differs"),
        ("My Folder/train2017/x.jpg", "train2017/x.jpg", "one folder higher"),
        ("nothing.jpg", None, "Check the path and the data set's root"),
    ],
)
def test_the_message_of_a_missing_file_says_where_it_may_be(root, name, found, words):
    with pytest.raises(RowError) as caught:
        read_image_size(root / name, "rows.jsonl:3")
    message = str(caught.value)
    assert message.startswith(f"rows.jsonl:3: {root / name}: there is no such image") and words in message
    assert found is None or f"but {root / found} is there" in message


def test_following_the_message_leads_to_the_file(root):
    for name in ("train2017/train2017/x.jpg", "x.jpg", "TRAIN2017/x.jpg", COMPOSED):
        similar = find_similar(root / name)
        assert read_image_size(Path(similar.path), "rows.jsonl:1") == (30, 20)
