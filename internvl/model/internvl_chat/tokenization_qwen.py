"""A fast Qwen tokenizer from the published files: byte-level BPE, the same in every version of transformers."""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

# How texts are cut into words before BPE (Qwen's published tokenizer, after GPT-4's): contractions, words, one digit
# at a time, punctuation, white space.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def build_qwen_tokenizer(
    folder: str | Path, special_ids: dict[str, int], plain: frozenset[str] = frozenset()
) -> PreTrainedTokenizerFast:
    """Build the fast tokenizer of ``vocab.json`` and ``merges.txt``. It has neither a first nor an unknown token.

    Args:
        folder: where the two files are.
        special_ids: added token → id, behind the vocabulary.
        plain: those of them that are text, and stay in decoded answers.

    Raises:
        ValueError: the ids leave a hole behind the vocabulary.
    """
    folder = Path(folder)
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8-sig"))
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    # A line that begins with "#" is a merge like any other, but for the first, which names the version.
    merges = [tuple(line.split(" ")) for line in lines[lines[:1] == ["#version: 0.2"] :] if line]
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    by_id = sorted(special_ids.items(), key=lambda item: item[1])
    for token, index in by_id:
        added = AddedToken(token, normalized=False, special=token not in plain)
        (tokenizer.add_tokens if token in plain else tokenizer.add_special_tokens)([added])
        if tokenizer.token_to_id(token) != index:
            raise ValueError(
                f"{folder}: token {token} should have id {index} but gets {tokenizer.token_to_id(token)}. The ids "
                f"behind the vocabulary of {len(vocab)} must follow one another."
            )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[
            token for token, _ in by_id if token not in plain and token not in ("<|im_end|>", "<|endoftext|>")
        ],
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
