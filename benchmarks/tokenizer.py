"""Time our tokenizer against the slow one on sentencepiece: loading, encoding and decoding of caption-like texts.

    python benchmarks/tokenizer.py --tokenizer pretrained/InternVL2-Tiny --json tokenizer.json

The slow one is transformers' own sentencepiece backend, given the special tokens: the kind of class the tokenizer code
published with checkpoints is. Bare sentencepiece is measured beside it, the least that can be done: ids straight from
its encoder, with a regular expression for the special tokens. All read the same ``tokenizer.model`` and are measured
in turn, round after round, so that a busy machine slows all of them; a ratio is that of the medians.
"""

import argparse
import json
import random
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import sentencepiece
from transformers import AddedToken
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from internvl.errors import UserError, ends_on_user_error
from internvl.model.internvl_chat.conversation import (
    ADDED_SPECIAL_TOKENS,
    RENAMED_SPECIAL_TOKENS,
    Turn,
    get_conv_template,
    join_segments,
    render_turns,
)
from internvl.model.internvl_chat.tokenization import load_tokenizer, read_added_tokens
from internvl.model.internvl_chat.tokenization_internlm2 import build_tokenizer

THINGS = "bed sofa table lamp window door plant shelf rug mirror television counter painting staircase".split()
LOOKS = "wooden white small large round grey modern leather bright narrow tiled empty".split()
PLACES = "next to|in front of|behind|to the left of|to the right of|under|on top of".split("|")


class SlowTokenizer(SentencePieceBackend):
    """transformers' slow tokenizer on a ``tokenizer.model``, with the special tokens in their places."""

    def __init__(self, model_file: Path, special_ids: dict[str, int]):
        super().__init__(
            vocab_file=str(model_file),
            bos_token="<s>",
            eos_token="</s>",
            unk_token="<unk>",
            added_tokens_decoder={
                index: AddedToken(token, special=True, normalized=False) for token, index in special_ids.items()
            },
        )

    def build_inputs_with_special_tokens(self, token_ids_0: list[int], token_ids_1: list[int] | None = None):
        return [self.bos_token_id, *token_ids_0]


class BareSentencePiece:
    """sentencepiece's own encoder and decoder, with special tokens split off before it."""

    def __init__(self, model_file: Path, special_ids: dict[str, int]):
        self.model = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
        self.special_ids = special_ids
        self.ids_left_out = set(special_ids.values())
        longest_first = sorted(special_ids, key=len, reverse=True)
        self.pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    def encode(self, text: str) -> list[int]:
        ids = [self.model.bos_id()]
        for piece in self.pattern.split(text):
            if piece in self.special_ids:
                ids.append(self.special_ids[piece])
            elif piece:
                ids += self.model.encode(piece)
        return ids

    def decode(self, ids: list[int]) -> str:
        return self.model.decode([index for index in ids if index not in self.ids_left_out])


def make_texts(count: int) -> list[str]:
    """Return rendered conversations with a caption as the answer, of 10 to 60 words."""
    rng = random.Random(0)
    template = get_conv_template("internlm2-chat")
    texts = []
    for _ in range(count):
        parts = [
            f"a {rng.choice(LOOKS)} {rng.choice(THINGS)} {rng.choice(PLACES)} a {rng.choice(THINGS)}"
            for _ in range(rng.randint(1, 7))
        ]
        turns = [Turn("human", "<img></img>\nDescribe the room."), Turn("gpt", f"There is {', and '.join(parts)}.")]
        texts.append(join_segments(render_turns(template, turns)))
    return texts


def measure(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each way, all measured once a round."""
    seconds = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def run(folder: Path, num_texts: int, rounds: int) -> dict:
    """Measure the tokenizer of a checkpoint folder.

    Raises:
        UserError: the folder has no ``tokenizer.model``.
    """
    model_file = folder / "tokenizer.model"
    if not model_file.is_file():
        raise UserError(f"{model_file}: there is no such file, and the slow tokenizer needs it. Name another folder.")
    fast = load_tokenizer(folder)
    special_ids, plain = read_added_tokens(folder)
    tokens = {"<s>", "</s>", *RENAMED_SPECIAL_TOKENS, *ADDED_SPECIAL_TOKENS, *special_ids}
    ids_of_special = {token: fast.convert_tokens_to_ids(token) for token in sorted(tokens)}
    slow, bare = SlowTokenizer(model_file, ids_of_special), BareSentencePiece(model_file, ids_of_special)
    texts = make_texts(num_texts)
    ids = slow(texts)["input_ids"]
    with tempfile.TemporaryDirectory() as saved:
        fast.save_pretrained(saved)
        seconds = measure(
            {
                "load_slow": lambda: SlowTokenizer(model_file, ids_of_special),
                "load_fast": lambda: load_tokenizer(saved),
                "build_fast": lambda: build_tokenizer(model_file, special_ids or None, plain),
                "encode_slow": lambda: slow(texts),
                "encode_bare": lambda: [bare.encode(text) for text in texts],
                "encode_fast": lambda: fast(texts),
                "encode_slow_one_by_one": lambda: [slow(text) for text in texts],
                "encode_fast_one_by_one": lambda: [fast(text) for text in texts],
                "decode_slow": lambda: slow.batch_decode(ids, skip_special_tokens=True),
                "decode_bare": lambda: [bare.decode(row) for row in ids],
                "decode_fast": lambda: fast.batch_decode(ids, skip_special_tokens=True),
            },
            rounds,
        )
    return {
        "texts": num_texts,
        "tokens": sum(map(len, ids)),
        "texts_with_other_ids": sum(
            ours != theirs for ours, theirs in zip(fast(texts)["input_ids"], ids, strict=True)
        ),
        "rounds": rounds,
        "median_seconds": seconds,
        # Above 1 our tokenizer is the faster one.
        "slow_over_fast": {
            "load": seconds["load_slow"] / seconds["load_fast"],
            "encode": seconds["encode_slow"] / seconds["encode_fast"],
            "encode_one_by_one": seconds["encode_slow_one_by_one"] / seconds["encode_fast_one_by_one"],
            "decode": seconds["decode_slow"] / seconds["decode_fast"],
        },
        "bare_over_fast": {
            "encode": seconds["encode_bare"] / seconds["encode_fast"],
            "decode": seconds["decode_bare"] / seconds["decode_fast"],
        },
    }


@ends_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, default=Path("pretrained/InternVL2-Tiny"), help="checkpoint folder")
    parser.add_argument("--texts", type=int, default=2000, help="number of texts (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="how often each way is measured (default %(default)s)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args(argv)
    figures = run(args.tokenizer, args.texts, args.rounds)
    for name, value in figures["median_seconds"].items():
        print(f"{name:<34}{value * 1000:8.1f} ms")
    for kind in ("slow", "bare"):
        for name, value in figures[f"{kind}_over_fast"].items():
            print(f"{name + ', ' + kind + ' over fast':<34}{value:8.2f}")
    print(f"{figures['texts_with_other_ids']} of {figures['texts']} texts get other ids")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
