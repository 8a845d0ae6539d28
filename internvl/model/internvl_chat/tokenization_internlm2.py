"""A fast InternLM2 tokenizer from the published files, without running the code published beside them."""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from .conversation import ADDED_SPECIAL_TOKENS, RENAMED_SPECIAL_TOKENS

SPACE = "\u2581"  # sentencepiece writes a space as this block
# Answers of the published checkpoints were decoded by a slow tokenizer, which tidies English in this order. It is part
# of the decoder here, because transformers 5 no longer does it for BPE tokenizers.
TIDY_ENGLISH = [
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
]


def build_tokenizer(
    model_file: str | Path, special_ids: dict[str, int] | None = None, plain: frozenset[str] = frozenset()
) -> PreTrainedTokenizerFast:
    """Build the fast tokenizer of a sentencepiece BPE model.

    Args:
        model_file: the published ``tokenizer.model``.
        special_ids: added token → id: an id inside the model renames that piece, one behind it extends the
            vocabulary. Without it the published tokens take their places (:func:`default_special_ids`).
        plain: those of the added tokens that are text, and stay in decoded answers.

    Raises:
        ValueError: the ids leave a hole behind the last piece.
    """
    import sentencepiece  # here, because a folder with tokenizer.json does not need it

    sentencepiece.set_min_log_level(2)  # the published model holds a null piece, which is warned about at every load
    model = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    num_pieces = model.get_piece_size()
    special_ids = special_ids or default_special_ids(num_pieces)
    pieces = [model.id_to_piece(index) for index in range(num_pieces)]
    renamed = {index: token for token, index in special_ids.items() if index < num_pieces}
    vocab = {renamed.get(index, piece): index for index, piece in enumerate(pieces)}
    merges = find_merges(
        {
            piece: model.get_score(index)
            for index, piece in enumerate(pieces)
            if index not in renamed and not model.is_control(index) and not model.is_byte(index)
        },
        vocab,
    )
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        + [decoders.Replace(untidy, tidy) for untidy, tidy in TIDY_ENGLISH]
    )
    by_id = sorted(special_ids.items(), key=lambda item: item[1])
    for token, index in by_id:
        added = AddedToken(token, normalized=False, special=token not in plain)
        (tokenizer.add_tokens if token in plain else tokenizer.add_special_tokens)([added])
        if tokenizer.token_to_id(token) != index:
            raise ValueError(
                f"{model_file}: special token {token} should have id {index} but gets {tokenizer.token_to_id(token)}. "
                f"The ids behind the {num_pieces} pieces must follow one another."
            )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocab["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
        additional_special_tokens=[token for token, index in by_id if index > 2 and token not in plain],
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def default_special_ids(num_pieces: int) -> dict[str, int]:
    """Return the published layout: ``<unk> <s> </s>`` first, six renamed last pieces, nine tokens behind them."""
    ids = {"<unk>": 0, "<s>": 1, "</s>": 2}
    first = num_pieces - len(RENAMED_SPECIAL_TOKENS)
    for offset, token in enumerate(RENAMED_SPECIAL_TOKENS + ADDED_SPECIAL_TOKENS):
        ids[token] = first + offset
    return ids


def find_merges(scores: dict[str, float], vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Return the BPE merges a sentencepiece model implies, best first.

    sentencepiece joins the neighbours whose joint piece scores highest; so every way to cut a piece into two pieces is
    a merge with that piece's score. Ways of one piece are ordered by the ids of their parts, as sentencepiece met
    them.
    """
    merges = []
    for piece, score in scores.items():
        ways = (
            (vocab[piece[:cut]], vocab[piece[cut:]], piece[:cut], piece[cut:])
            for cut in range(1, len(piece))
            if piece[:cut] in vocab and piece[cut:] in vocab
        )
        merges.extend((-score, order, way) for order, way in enumerate(sorted(ways)))
    merges.sort(key=lambda merge: merge[0])  # stable: pieces of equal score keep their order
    return [(left, right) for _, _, (_, _, left, right) in merges]
