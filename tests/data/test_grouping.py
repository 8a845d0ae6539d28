"""Which rows share an image's tokens, and how they are put into one sequence."""

import numpy as np
import pytest

from internvl.data.annotation import parse_row
from internvl.data.grouping import (
    IMAGE_LINK,
    Groups,
    ImageLinks,
    ImageSpan,
    group_rows,
    share_prefixes,
    shared_parts,
    sharing_keys,
)
from internvl.data.tokenize import RenderedRow


def row(*turns: str, **fields):
    roles = ("human", "gpt")
    conversation = [{"from": roles[number % 2], "value": value} for number, value in enumerate(turns)]
    if "system" in fields:
        conversation.insert(0, {"from": "system", "value": fields.pop("system")})
    return parse_row({"conversations": conversation, **fields}, "rows.jsonl:1")


def test_rows_share_what_stands_before_and_in_their_images():
    one = row("<image>\nDescribe it.", "A cup.", image="a.png")
    assert shared_parts(one) == shared_parts(row("<image>\nWhat is it?", "A mug.", "And?", "Blue.", image="a.png"))
    others = [
        row("<image>\nDescribe it.", "A cup.", image="b.png"),
        row("Look: <image>\nDescribe it.", "A cup.", image="a.png"),
        row("<image>\nDescribe it.", "A cup.", image="a.png", system="Be brief."),
    ]
    assert all(shared_parts(other)[0] != shared_parts(one)[0] for other in others)


def test_texts_and_videos_share_nothing():
    assert shared_parts(row("Hello.", "Hi.")) == []
    assert shared_parts(row("<video>\nWhat happens?", "A cup falls.", video="a.mp4")) == []


def test_histories_share_the_images_that_they_begin_with():
    one, two, three, other = (
        row("Steps: " + "<image>\n" * len(names) + "Where to?", "Ahead.", image=[*names])
        for names in ("a", "ab", "abc", "axc")
    )
    assert shared_parts(three)[:2] == shared_parts(two) and shared_parts(two)[:1] == shared_parts(one)
    assert shared_parts(other)[0] == shared_parts(one)[0] and shared_parts(other)[1] != shared_parts(two)[1]


def test_an_image_behind_an_answer_is_shared_with_rows_that_answer_alike():
    first = ("<image>What?", "A cup.", "<image>And?")
    one, two = (row(*first, answer, image=["a", "b"]) for answer in ("Two.", "Three."))
    assert shared_parts(one) == shared_parts(two) and len(shared_parts(one)) == 2
    other = row("<image>What?", "A mug.", "<image>And?", "Two.", image=["a", "b"])
    assert shared_parts(other)[0] == shared_parts(one)[0] and shared_parts(other)[1] != shared_parts(one)[1]


def test_a_suffix_starts_with_the_last_token_before_the_answer():
    samples = [
        RenderedRow([1, 7, 7, 3, 4, 50, 9], [-100] * 5 + [50, 9]),
        RenderedRow([1, 7, 7, 3, 4, 50, 60, 9], [-100] * 5 + [50, 60, 9]),
    ]
    shared = share_prefixes(samples)
    assert shared.tree == (4, (3, 4))
    assert shared.input_ids == [1, 7, 7, 3, 4, 50, 9, 4, 50, 60, 9]
    assert shared.labels == [-100] * 5 + [50, 9] + [-100, 50, 60, 9]
    assert shared.weights == () and shared.images == []


def test_a_prefix_ends_where_questions_part():
    samples = [RenderedRow([1, 7, 7, 3, 4, 50], [-100] * 5 + [50]), RenderedRow([1, 7, 7, 5, 50], [-100] * 4 + [50])]
    assert share_prefixes(samples).tree == (3, (3, 2))
    assert share_prefixes(samples[:1]) == ([1, 7, 7, 3, 4, 50], [-100] * 5 + [50], (6, ()), (), [])


def test_answers_that_rows_share_count_in_all_of_them():
    """Turns of a conversation: the first row ends where the second asks on; their first answer is the same."""
    first = [1, 7, 3, 50, 51, 9]
    labels = [-100] * 3 + [50, 51, 9]
    second = RenderedRow([*first, 4, 60, 9], [*labels, -100, 60, 9])
    shared = share_prefixes([RenderedRow(first, labels), second, second])
    assert shared.tree == (6, (3, 3))
    assert shared.input_ids[:6] == first and shared.labels[:6] == labels
    assert shared.weights[:6] == [0, 0, 0, 3, 3, 3] and sum(shared.weights) == 3 * 3 + 2 * 2


def test_a_branch_is_a_prefix_of_its_own_where_that_saves_tokens(monkeypatch):
    ids = [[1, 2, *range(10, 15), answer] for answer in (50, 51)] + [[1, 2, *range(20, 25), 52]]
    samples = [RenderedRow(row, [-100] * 7 + row[-1:]) for row in ids]
    assert share_prefixes(samples).tree == (2, (6, 6, 6))
    monkeypatch.setattr("internvl.data.grouping.MIN_SAVED_TOKENS", 4)
    shared = share_prefixes(samples)
    assert shared.tree == (2, (6, (4, (2, 2))))
    assert shared.input_ids == [1, 2, 20, 21, 22, 23, 24, 52, 10, 11, 12, 13, 14, 50, 14, 51]


def test_image_tokens_are_shared_by_rows_with_the_same_image_only():
    """Two histories of three images of two tokens (id 5) each; the third differs."""
    ids = [1, 5, 5, 5, 5, 5, 5, 3, 50]
    samples = [RenderedRow(ids, [-100] * 8 + [50])] * 2
    spans = [[ImageSpan(number, 2) for number in numbers] for numbers in ((0, 1, 2), (0, 1, 3))]
    shared = share_prefixes(samples, spans, 5)
    assert shared.tree == (5, (4, 4)) and shared.images == [0, 1, 2, 3]
    assert share_prefixes(samples, [spans[0]] * 2, 5).images == [0, 1, 2]


def test_rows_that_start_differently_are_refused():
    samples = [RenderedRow([start, 7, 50], [-100, -100, 50]) for start in (1, 2)]
    with pytest.raises(ValueError, match="start with different tokens"):
        share_prefixes(samples)


def test_groups_count_the_tokens_of_images_as_far_as_they_are_shared():
    """Histories of 1, 2 and 3 frames of 100 tokens, one that parts after the first frame, and 10 tokens of text."""
    table = np.array([(1, 100), (2, 200), (1, 100), (2, 200), (3, 300), (1, 100), (9, 200)], IMAGE_LINK)
    links = ImageLinks(np.array([0, 0, 2, 5]), np.array([0, 2, 3, 2]), table)
    groups = group_rows(
        np.ones(4, int), [110, 210, 310, 210], np.array([100, 200, 300, 200]), max_rows=9, max_tokens=1000, links=links
    )
    assert list(groups.groups) == [(0, 1, 2, 3)] and groups.num_tokens.tolist() == [110 + 110 + 110 + 110]
    small = group_rows(
        np.ones(4, int), [110, 210, 310, 210], np.array([100, 200, 300, 200]), max_rows=9, max_tokens=230, links=links
    )
    assert list(small.groups) == [(0, 1), (2,), (3,)]


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
    row_stats = np.zeros(5, [("shared", "u8")])
    row_stats["shared"] = 9
    keys = sharing_keys(index, row_stats, np.array([0, 0, 0, 0, 1]), np.array([True, True, True, True, False]))
    assert keys[0] == keys[1] != keys[2] == keys[3] and keys[4] == 0
    row_stats["shared"][1] = 8
    keys = sharing_keys(index, row_stats, np.zeros(5, int), np.ones(5, bool))
    assert len({*keys.tolist()}) == 3 and keys[0] == keys[4] != keys[1] and keys[2] == keys[3]


def test_keys_and_groups_of_many_items_are_those_of_a_plain_loop():
    rng = np.random.default_rng(5)
    rows = np.stack([rng.integers(0, 3, 400), rng.integers(0, 20, 400)], axis=1)
    index = np.concatenate([rows, rows[:150]])
    row_stats = np.zeros(len(index), [("shared", np.int64)])
    row_stats["shared"] = index[:, 1] % 7 * (1 + index[:, 0])
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
