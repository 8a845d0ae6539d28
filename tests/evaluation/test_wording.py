"""Words, lengths, repetitions and broken ends of captions."""

import pytest

from internvl.evaluation.wording import Wording, wording_rows


def test_words_are_counted_over_all_captions():
    wording = Wording.of(["a cat on a chair", "a dog on a", "a cat on a chair", ""])
    assert wording == Wording(
        distinct_words=5, words_per_caption=14 / 4, distinct_captions=3 / 4, broken_off=pytest.approx(1 / 4)
    )


@pytest.mark.parametrize(
    ("caption", "is_broken"), [("a man with", True), ("a man with a hat", False), ("stop", False)]
)
def test_a_caption_breaks_off_where_no_sentence_ends(caption, is_broken):
    assert Wording.of([caption]).broken_off == is_broken


def test_a_table_has_a_column_for_each():
    rows = wording_rows(Wording(1234, 9.87, 0.5, 0.001), Wording(10, 8, 1, 0))
    assert rows[0] == ("distinct words", "1,234", "10") and rows[3] == ("broken off", "0.1%", "0.0%")
