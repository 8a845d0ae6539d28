"""The demo's command: what is refused before anything is loaded, and which models share their weights."""

import sys

import pytest

from internvl.commands import demo
from internvl.errors import UserError
from internvl.inference.chat import LocalTalker, WithoutAdapter


def parse(*words):
    return demo.make_parser().parse_args(list(map(str, words)))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--port", "0"], "--port: is 0. Give a number from 1 to 65535"),
        (["--max-num", "0"], "--max-num: is 0"),
        (["--max-new-tokens", "0"], "--max-new-tokens: is 0"),
    ],
)
def test_values_that_cannot_be_are_refused(flags, words):
    with pytest.raises(UserError, match=words):
        demo.check_arguments(parse("model", *flags))


def test_without_gradio_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r'Install it: pip install "\.\[demo\]"'):
        demo.check_arguments(parse("model"))


def test_an_adapter_and_its_base_share_the_weights_in_either_order(tiny_base, trained_adapter):
    for names in ((trained_adapter, tiny_base), (tiny_base, trained_adapter)):
        talkers = demo.open_talkers(parse(names[0], "--compare", names[1], "--max-num", 2))
        assert [name for name, _ in talkers] == list(map(str, names))
        kinds = {name: type(talker) for name, talker in talkers}
        assert kinds == {str(trained_adapter): LocalTalker, str(tiny_base): WithoutAdapter}
        assert talkers[0][1].engine.model is talkers[1][1].engine.model


def test_other_pairs_are_loaded_each(tiny_base, tiny_member):
    talkers = demo.open_talkers(parse(tiny_base, "--compare", tiny_member("qwen3")))
    assert talkers[0][1].engine.model is not talkers[1][1].engine.model
