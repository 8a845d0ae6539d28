"""Which rows share an image's tokens, and how they are put into one sequence."""

import numpy as np

from internvl.data.annotation import parse_row
from internvl.data.grouping import Groups, group_rows, share_prefix, shared_part, sharing_keys
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
    assert share_prefix(samples[:1]) == ([1, 7, 7, 3, 4, 50], [-100] * 5 + [50], 6, (), ())


def test_groups_are_bounded_in_rows_and_tokens():
    keys = np.array([5, 5, 0, 5, 0, 5, 5, 6])
    images = np.array([100, 100, 0, 100, 0, 100, 100, 100])
    lengths = [110, 120, 30, 130, 40, 110, 110, 110]
    groups = group_rows(keys, lengths, images, max_rows=3, max_tokens=1000)
    assert list(groups.groups) == [(0, 1, 3), (2,), (4,), (5, 6), (7,)]
    assert groups.num_tokens.tolist() == [160, 30, 40, 120, 110]
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


def test_keys_and_groups_of_many_items_are_those_of_a_plain_loop():
    rng = np.random.default_rng(5)
    rows = np.stack([rng.integers(0, 3, 400), rng.integers(0, 20, 400)], axis=1)
    index = np.concatenate([rows, rows[:150]])
    row_stats = np.zeros(len(index), [("shared", np.int64), ("tiles", np.int32)])
    row_stats["shared"], row_stats["tiles"] = index[:, 1] % 7, index[:, 0]
    sets, may_share = index[:, 0] % 2, rng.random(len(index)) < 0.9
    seen: dict[tuple, int] = {}
    expected = []
    for item, row in enumerate(map(tuple, index.tolist())):
        seen[row] = seen.get(row, -1) + 1
        shares = may_share[item] and row_stats["shared"][item]
        expected.append((*row_stats[item].tolist(), sets[item], seen[row]) if shares else None)
    keys = sharing_keys(index, row_stats, sets, may_share)
    assert [key == 0 for key in keys] == [key is None for key in expected]
    assert len({*zip(keys.tolist(), expected, strict=True)} - {(0, None)}) == len({*expected} - {None})
    groups = group_rows(keys, np.full(len(index), 30), np.full(len(index), 20), max_rows=4, max_tokens=1000).groups
    assert sorted(item for group in groups for item in group) == list(range(len(index)))
    assert all(group == tuple(sorted(group)) and len({*keys[list(group)]}) == 1 for group in groups)
    assert [group[0] for group in groups] == sorted(group[0] for group in groups)
    assert groups[1:3] == [groups[1], groups[2]] and list(Groups.of(list(groups))) == list(groups)
