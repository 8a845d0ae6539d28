"""Which rows share an image's tokens, and how they are put into one sequence."""

import numpy as np

from internvl.data.annotation import parse_row
from internvl.data.grouping import group_rows, share_prefix, shared_part, sharing_keys
from internvl.data.tokenize import RenderedRow


def row(*turns: str, **fields):
    roles = ("human", "gpt")
    conversation = [{"from": roles[number % 2], "value": value} for number, value in enumerate(turns)]
    if "system" in fields:
        conversation.insert(0, {"from": "system", "value": fields.pop("system")})
    return parse_row({"conversations": conversation, **fields}, "rows.jsonl:1")


def test_rows_share_what_stands_before_and_in_their_images():
    one = row("<image>\nDescribe it.", "A cup.", image="a.png")
    assert shared_part(one) == shared_part(row("<image>\nWhat is it?", "A mug.", "And?", "Blue.", image="a.png"))
    others = [
        row("<image>\nDescribe it.", "A cup.", image="b.png"),
        row("Look: <image>\nDescribe it.", "A cup.", image="a.png"),
        row("<image>\nDescribe it.", "A cup.", image="a.png", system="Be brief."),
        row("<image><image>\nDescribe it.", "A cup.", image=["a.png", "a.png"]),
    ]
    assert all(shared_part(other) not in ((), shared_part(one)) for other in others)


def test_texts_videos_and_images_behind_an_answer_share_nothing():
    assert shared_part(row("Hello.", "Hi.")) == ()
    assert shared_part(row("<video>\nWhat happens?", "A cup falls.", video="a.mp4")) == ()
    assert shared_part(row("<image>What?", "A cup.", "<image>And?", "Two.", image=["a.png", "b.png"])) == ()


def test_a_suffix_starts_with_the_last_token_before_the_answer():
    samples = [
        RenderedRow([1, 7, 7, 3, 4, 50, 9], [-100] * 5 + [50, 9]),
        RenderedRow([1, 7, 7, 3, 4, 50, 60, 9], [-100] * 5 + [50, 60, 9]),
    ]
    shared = share_prefix(samples)
    assert shared.prefix == 4 and shared.suffixes == (3, 4)
    assert shared.input_ids == [1, 7, 7, 3, 4, 50, 9, 4, 50, 60, 9]
    assert shared.labels == [-100] * 5 + [50, 9] + [-100, 50, 60, 9]


def test_a_prefix_ends_where_questions_part():
    samples = [RenderedRow([1, 7, 7, 3, 4, 50], [-100] * 5 + [50]), RenderedRow([1, 7, 7, 5, 50], [-100] * 4 + [50])]
    assert share_prefix(samples).prefix == 3
    assert share_prefix(samples[:1]) == ([1, 7, 7, 3, 4, 50], [-100] * 5 + [50], 6, ())


def test_groups_are_bounded_in_rows_and_tokens():
    keys = np.array([5, 5, 0, 5, 0, 5, 5, 6])
    images = np.array([100, 100, 0, 100, 0, 100, 100, 100])
    lengths = [110, 120, 30, 130, 40, 110, 110, 110]
    groups = group_rows(keys, lengths, images, max_rows=3, max_tokens=1000)
    assert groups.groups == [(0, 1, 3), (2,), (4,), (5, 6), (7,)]
    assert groups.num_tokens == [160, 30, 40, 120, 110]
    assert group_rows(keys, lengths, images, max_rows=9, max_tokens=131).groups[:2] == [(0, 1), (2,)]


def test_repeated_rows_are_in_groups_of_their_own_and_augmented_rows_alone():
    index = np.array([[0, 0], [0, 1], [0, 0], [0, 1], [1, 0]])
    row_stats = np.zeros(5, [("shared", "u8"), ("tiles", "i4")])
    row_stats["shared"], row_stats["tiles"] = [9, 9, 9, 9, 9], [2, 2, 2, 2, 2]
    keys = sharing_keys(index, row_stats, np.array([0, 0, 0, 0, 1]), np.array([True, True, True, True, False]))
    assert keys[0] == keys[1] != keys[2] == keys[3] and keys[4] == 0
    row_stats["tiles"][1] = 3
    keys = sharing_keys(index, row_stats, np.zeros(5, int), np.ones(5, bool))
    assert len({*keys.tolist()}) == 3 and keys[0] == keys[4] != keys[1] and keys[2] == keys[3]
