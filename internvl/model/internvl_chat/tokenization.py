"""The tokenizer of a checkpoint folder, whichever language model it is for."""

import json
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from .conversation import ADDED_SPECIAL_TOKENS, RENAMED_SPECIAL_TOKENS
from .tokenization_internlm2 import build_tokenizer
from .tokenization_qwen import build_qwen_tokenizer


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a checkpoint folder.

    Reads ``tokenizer.json`` when there is one (what we save), else builds the fast tokenizer from what was published:
    ``tokenizer.model`` (InternLM2) or ``vocab.json`` and ``merges.txt`` (Qwen), and the added tokens of
    ``tokenizer_config.json`` / ``added_tokens.json``.

    Raises:
        FileNotFoundError: the folder holds none of them.
    """
    folder = Path(folder)
    if (folder / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(folder)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return build_qwen_tokenizer(folder, *read_added_tokens(folder))
    if not (folder / "tokenizer.model").is_file():
        raise FileNotFoundError(
            f"{folder}: holds neither tokenizer.json nor tokenizer.model nor vocab.json with merges.txt. Copy the "
            "checkpoint's tokenizer files there."
        )
    return build_tokenizer(folder / "tokenizer.model", *read_added_tokens(folder))


def read_added_tokens(folder: Path) -> tuple[dict[str, int], frozenset[str]]:
    """Return the added tokens and ids that a folder's JSON files name, and which are plain text.

    Plain tokens are words that somebody added to the vocabulary: part of an answer, not marks to be left out of it.
    """
    ids, plain = {}, set()
    config_file, added_file = folder / "tokenizer_config.json", folder / "added_tokens.json"
    config = json.loads(config_file.read_text(encoding="utf-8-sig")) if config_file.is_file() else {}
    for index, token in config.get("added_tokens_decoder", {}).items():
        ids[token["content"]] = int(index)
        if not token.get("special", True):
            plain.add(token["content"])
    if added_file.is_file():
        marks = {*ids, *ADDED_SPECIAL_TOKENS, *RENAMED_SPECIAL_TOKENS, *config.get("additional_special_tokens", [])}
        added = json.loads(added_file.read_text(encoding="utf-8-sig"))
        plain |= added.keys() - marks  # that file has no word on it, and transformers takes such tokens for text
        ids.update(added)
    return ids, frozenset(plain)
