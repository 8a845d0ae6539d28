"""Messages to the person at the terminal: what a file says is shown, and cannot do anything."""

import pytest

from internvl.errors import UserError, shorten


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("a.json:3: is \x1b[2J. Correct it.", r"a.json:3: is \x1b[2J. Correct it."),
        ("half \ud800 a character\tand\nlines", "half \\ud800 a character\tand\nlines"),
        ("Straße, 猫.jpg: is missing.", "Straße, 猫.jpg: is missing."),
        (f"/{'x' * 300}/a.png: is missing.", f"/{'x' * 300}/a.png: is missing."),
        (f"/{'x' * 9000}.png: is missing.", f"/{'x' * 199}…{'x' * 95}.png: is missing."),
    ],
    ids=["escapes", "half characters", "other scripts", "long paths", "endless names"],
)
def test_messages_show_what_they_quote_and_no_more(said, shown):
    assert str(UserError(said)) == shown


def test_values_are_cut_when_they_are_long():
    assert shorten("ab") == "'ab'"
    assert shorten(["x"] * 100, 20) == repr(["x"] * 100)[:20] + "…"
    assert shorten(10**5000) == "a int too large to show"
