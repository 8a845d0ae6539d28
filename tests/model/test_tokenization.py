"""The fast tokenizer built from published files, against golden ids and sentencepiece itself."""

import json
import shutil

import pytest
import sentencepiece
from transformers import AutoTokenizer

from internvl.model.chat_template import chat_template
from internvl.model.internvl_chat.conversation import ADDED_SPECIAL_TOKENS, RENAMED_SPECIAL_TOKENS, get_conv_template
from internvl.model.internvl_chat.tokenization import load_tokenizer
from internvl.model.packaging import write_tokenizer

TEXTS = ["A pattern has waves.", "  two  spaces\n\nlines\t", "naïve 北京 😀", "Pattern11 colours,many"]


@pytest.fixture(scope="session")
def published(shared):
    return load_tokenizer(shared / "internvl2_2b")


def test_ids_and_special_tokens_equal_the_golden_ones(published, shared):
    golden = json.loads((shared / "reference" / "tokens" / "tokenizer.json").read_text())
    assert len(published) == golden["vocab_len"]
    assert {token: published.convert_tokens_to_ids(token) for token in golden["ids"]} == golden["ids"]
    assert [published(case["text"])["input_ids"] for case in golden["plain"]] == [
        case["ids"] for case in golden["plain"]
    ]


def test_answers_are_decoded_as_the_published_slow_tokenizer_did(published, shared):
    golden = json.loads((shared / "reference" / "tokens" / "decode.json").read_text())
    for case in golden["items"]:
        assert published.decode(case["ids"], skip_special_tokens=True) == case["slow"]


@pytest.mark.parametrize("text", TEXTS)
def test_ids_of_a_small_vocabulary_equal_sentencepieces(tiny_base, text):
    model = sentencepiece.SentencePieceProcessor(model_file=str(tiny_base / "tokenizer.model"))
    tokenizer = load_tokenizer(tiny_base)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == model.encode(text)
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_special_tokens_stand_where_the_published_ones_do(tiny_base):
    tokenizer = load_tokenizer(tiny_base)
    tail = tokenizer.convert_ids_to_tokens(range(len(tokenizer) - 15, len(tokenizer)))
    assert tail == RENAMED_SPECIAL_TOKENS + ADDED_SPECIAL_TOKENS
    text = "a<|im_end|><IMG_CONTEXT><|im_start|>b"
    assert [tokenizer.decode(i) for i in tokenizer(text)["input_ids"][1:]] == [
        "a", "<|im_end|>", "<IMG_CONTEXT>", "<|im_start|>", "b",
    ]  # fmt: skip


@pytest.fixture
def with_words(tiny_base, tmp_path):
    """The tiny base as published, with one word added as text, one as a mark, and one in added_tokens.json alone."""
    folder = tmp_path / "with words"
    shutil.copytree(tiny_base, folder)
    (folder / "tokenizer.json").unlink()
    base = load_tokenizer(tiny_base)
    size = len(base)
    decoder = {
        str(index): {"content": token.content, "special": True} for index, token in base.added_tokens_decoder.items()
    }
    decoder |= {
        str(size): {"content": "<left>", "special": False},
        str(size + 1): {"content": "<mark>", "special": True},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    (folder / "added_tokens.json").write_text(json.dumps({"<mark>": size + 1, "<right>": size + 2}))
    return folder


def test_words_that_somebody_added_stay_in_answers_and_marks_do_not(with_words, tmp_path):
    built = load_tokenizer(with_words)
    template = get_conv_template("internlm2-chat")
    write_tokenizer(tmp_path / "saved", built, chat_template(template))
    ids = built("a <left> b <right> c <mark>", add_special_tokens=False)["input_ids"]
    for tokenizer in (built, load_tokenizer(tmp_path / "saved"), AutoTokenizer.from_pretrained(tmp_path / "saved")):
        assert tokenizer("a <left> b <right> c <mark>", add_special_tokens=False)["input_ids"] == ids
        text = tokenizer.decode(ids, skip_special_tokens=True)
        assert "<left>" in text and "<right>" in text and "<mark>" not in text


def test_what_is_saved_loads_with_autotokenizer(tiny_base, tmp_path):
    load_tokenizer(tiny_base).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert [tokenizer(text)["input_ids"] for text in TEXTS] == [
        load_tokenizer(tiny_base)(text)["input_ids"] for text in TEXTS
    ]
