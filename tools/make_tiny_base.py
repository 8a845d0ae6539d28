"""Make a small InternVL2 with random weights: the same classes, keys and special tokens as the published checkpoint.

    python tools/make_tiny_base.py OUT --corpus train.jsonl [--corpus more.jsonl]

Its sentencepiece vocabulary is learnt from the texts of the given annotation files, with the published special tokens
in their places. ``shell/tiny/pretrain.sh`` trains the result into ``pretrained/InternVL2-Tiny``; tests use it as it
is.
"""

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import sentencepiece
import torch

from internvl.errors import ends_on_user_error
from internvl.model.internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl.model.internvl_chat.conversation import TEMPLATES
from internvl.model.internvl_chat.modeling_internvl_chat import InternVLChatModel
from internvl.model.internvl_chat.tokenization_internlm2 import build_tokenizer
from internvl.model.packaging import write_chat_tokenizer, write_model_files

TEMPLATE = "internlm2-chat"
# The Chinese system message heads every prompt. Seen this often by the vocabulary trainer it becomes a few long
# pieces; spelled in bytes it would be longer than the image and the question together.
SYSTEM_MESSAGE_REPEATS = 1000


def texts(files: list[Path]) -> Iterator[str]:
    """Yield every line of text the vocabulary should cover."""
    template = TEMPLATES[TEMPLATE]
    yield from itertools.repeat(template.system_message, SYSTEM_MESSAGE_REPEATS)
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            for turn in json.loads(line)["conversations"]:
                yield from (text for text in turn["value"].replace("<image>", "").splitlines() if text.strip())
    yield from (role for role in ("system", "user", "assistant") for _ in range(SYSTEM_MESSAGE_REPEATS))


def train_vocabulary(out: Path, files: list[Path], vocab_size: int) -> Path:
    """Train ``out/tokenizer.model``, a BPE model with byte fallback and no dummy prefix, like the published one."""
    sentencepiece.set_min_log_level(2)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=texts(files),
        model_prefix=str(out / "tokenizer"),
        model_type="bpe",
        # Six pieces at the end make room for the special tokens that replace them.
        vocab_size=vocab_size - 6,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=1.0,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        control_symbols=[f"[UNUSED_TOKEN_{number}]" for number in range(6)],
        num_threads=1,  # with more, equal counts are ordered by chance
    )
    (out / "tokenizer.vocab").unlink()
    return out / "tokenizer.model"


def tiny_config(vocab_size: int, *, image_size: int, patch_size: int, width: int, layers: int) -> InternVLChatConfig:
    """Return the configuration: the published one with other sizes. ``width`` is the language model's."""
    return InternVLChatConfig(
        vision_config={
            "image_size": image_size,
            "patch_size": patch_size,
            "hidden_size": width * 3 // 4,
            "intermediate_size": width * 3,
            "num_attention_heads": max(2, width // 64),
            "num_hidden_layers": layers + 1,
            "qkv_bias": True,
            "qk_normalization": False,
            "norm_type": "layer_norm",
            "initializer_factor": 1.0,
        },
        llm_config={
            "architectures": ["InternLM2ForCausalLM"],
            "vocab_size": vocab_size,
            "hidden_size": width,
            "intermediate_size": width * 2,
            "num_attention_heads": max(4, width // 32),
            "num_key_value_heads": max(2, width // 64),
            "num_hidden_layers": layers,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1000000},
            "bias": False,
            "pad_token_id": 2,
        },
        template=TEMPLATE,
        force_image_size=image_size,
        select_layer=-1,
        ps_version="v2",
        downsample_ratio=0.5,
        dynamic_image_size=True,
        use_thumbnail=True,
        min_dynamic_patch=1,
        max_dynamic_patch=12,
        dtype="float32",
    )


def make_tiny_base(
    out: Path,
    corpus: list[Path],
    *,
    vocab_size: int = 1024,
    image_size: int = 224,
    patch_size: int = 28,
    width: int = 256,
    layers: int = 4,
    seed: int = 0,
) -> InternVLChatModel:
    """Write the checkpoint folder ``out`` and return the model."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(train_vocabulary(out, corpus, vocab_size))
    torch.manual_seed(seed)
    config = tiny_config(len(tokenizer), image_size=image_size, patch_size=patch_size, width=width, layers=layers)
    model = InternVLChatModel(config)
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|im_start|>")]
    model.generation_config.update(eos_token_id=ends, bos_token_id=1, pad_token_id=2)
    model.save_pretrained(out)
    write_chat_tokenizer(out, tokenizer, config.template)
    write_model_files(out, config)
    return model


@ends_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write the checkpoint to")
    parser.add_argument(
        "--corpus", type=Path, action="append", required=True, help="annotation JSONL for the vocabulary"
    )
    parser.add_argument("--vocab-size", type=int, default=1024, help="sentencepiece pieces (default %(default)s)")
    parser.add_argument("--image-size", type=int, default=224, help="tile side in px (default %(default)s)")
    parser.add_argument("--patch-size", type=int, default=28, help="patch side in px (default %(default)s)")
    parser.add_argument("--width", type=int, default=256, help="language model channels (default %(default)s)")
    parser.add_argument("--layers", type=int, default=4, help="language model layers (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    model = make_tiny_base(
        args.out,
        args.corpus,
        vocab_size=args.vocab_size,
        image_size=args.image_size,
        patch_size=args.patch_size,
        width=args.width,
        layers=args.layers,
        seed=args.seed,
    )
    size = sum(file.stat().st_size for file in args.out.iterdir()) / 1e6
    print(f"{args.out}: {model.num_parameters():,} parameters, {size:.1f} MB")


if __name__ == "__main__":
    main()
