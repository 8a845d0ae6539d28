"""Images behind links, as people lay out COCO and the hub lays out its cache."""

import json

import pytest

from internvl.data.checking import check_dataset
from internvl.errors import UserError
from tests.conftest import make_image
from tests.data.opening import open_rows


@pytest.fixture(params=["folder", "files"])
def linked(request, tmp_path):
    """Three images outside the root: behind a linked folder, or each behind a link of its own."""
    disk, root = tmp_path / "disk", tmp_path / "coco"
    disk.mkdir()
    root.mkdir()
    names = [f"{number}.jpg" for number in range(3)]
    for number, name in enumerate(names):
        make_image(40, 30, number).save(disk / name)
    if request.param == "folder":
        (root / "val2014").symlink_to(disk)
    else:
        (root / "val2014").mkdir()
        for name in names:
            (root / "val2014" / name).symlink_to(disk / name)
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A pattern."}]
    rows = ({"image": f"val2014/{name}", "conversations": turns} for name in names)
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def test_links_out_of_the_root_are_said_once_with_where_they_lead(linked, tiny_model):
    check = check_dataset(open_rows(linked, tiny_model.tokenizer))
    assert len(check.errors) == 3
    with pytest.raises(UserError) as caught:
        check.raise_errors("Advice.")
    message = str(caught.value)
    assert message.count("--allow_outside_root True") == 1
    assert "val2014' lead" in message and str(linked.parent / "disk") in message
    assert "3 of 3 rows cannot be trained on (outside the root: 3)" in message


def test_following_the_message_reads_them(linked, tiny_model):
    check = check_dataset(open_rows(linked, tiny_model.tokenizer, allow_outside_root=True))
    assert not check.errors
