"""Make a small member of the family with random weights: classes, keys and special tokens of the published ones.

    python tools/make_tiny_base.py OUT --corpus train.jsonl [--corpus more.jsonl] [--llm qwen3] [--vision FOLDER]

Its vocabulary is learnt from the texts of the given annotation files, with the published special tokens in their
places. ``shell/tiny/pretrain.sh`` trains the result into ``pretrained/InternVL2-Tiny``, and with ``LLM=qwen3`` into
``pretrained/InternVL3_5-Tiny``; tests use it as it is.
"""

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import sentencepiece
import torch
from tokenizers import pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from internvl.errors import ends_on_user_error
from internvl.model.internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl.model.internvl_chat.conversation import TEMPLATES
from internvl.model.internvl_chat.modeling_internvl_chat import InternVLChatModel
from internvl.model.internvl_chat.tokenization_internlm2 import build_tokenizer
from internvl.model.internvl_chat.tokenization_qwen import build_qwen_tokenizer
from internvl.model.loading import load_model
from internvl.model.packaging import write_chat_tokenizer, write_model_files

# Language model → the template of the members that have it.
TEMPLATE_NAMES = {"internlm2": "internlm2-chat", "qwen2": "Hermes-2", "qwen3": "internvl2_5"}
# The Chinese system message heads every prompt. Seen this often by the vocabulary trainer it becomes a few long
# pieces; spelled in bytes it would be longer than the image and the question together.
SYSTEM_MESSAGE_REPEATS = 1000
# The special tokens of the published Qwen tokenizers, in their order; Qwen3's has more before <img>, of which this
# project uses one.
QWEN_SPECIAL = {
    "qwen2": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "qwen3": ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|video_pad|>"),
}
IMAGE_SPECIAL = ("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")


def texts(files: list[Path], template_name: str) -> Iterator[str]:
    """Yield every line of text the vocabulary should cover."""
    template = TEMPLATES[template_name]
    yield from itertools.repeat(template.system_message, SYSTEM_MESSAGE_REPEATS)
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            for turn in json.loads(line)["conversations"]:
                yield from (text for text in turn["value"].replace("<image>", "").splitlines() if text.strip())
    yield from (role for role in ("system", "user", "assistant") for _ in range(SYSTEM_MESSAGE_REPEATS))


def train_internlm2_vocabulary(out: Path, lines: Iterator[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train ``out/tokenizer.model``, a BPE model with byte fallback and no dummy prefix, like the published one."""
    sentencepiece.set_min_log_level(2)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines,
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
    return build_tokenizer(out / "tokenizer.model")


def train_qwen_vocabulary(out: Path, lines: Iterator[str], vocab_size: int, llm: str) -> PreTrainedTokenizerFast:
    """Train ``vocab.json`` and ``merges.txt`` in ``out``: byte-level BPE on the words that Qwen's tokenizer makes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    (out / "vocab.json").write_text(json.dumps(dict(zip(alphabet, range(256), strict=True))), encoding="utf-8")
    (out / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    tokenizer = build_qwen_tokenizer(out, {}).backend_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.model.save(str(out))
    special = (*QWEN_SPECIAL[llm], *IMAGE_SPECIAL)
    start = tokenizer.get_vocab_size(with_added_tokens=False)
    return build_qwen_tokenizer(out, {token: start + number for number, token in enumerate(special)})


def llm_config(llm: str, tokenizer: PreTrainedTokenizerFast, *, width: int, layers: int) -> dict:
    """Return the language model's part of the configuration: the published one with other sizes."""
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": width * 2,
        "num_hidden_layers": layers,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000},
        "tie_word_embeddings": False,
    }
    heads = {"num_attention_heads": max(4, width // 32), "num_key_value_heads": max(2, width // 64)}
    ends = {"bos_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    if llm == "qwen2":
        return sizes | heads | ends | {
            "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2",
            "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "use_sliding_window": False,
        }  # fmt: skip
    if llm == "qwen3":  # whose heads need not add up to the width
        return sizes | ends | {
            "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": max(32, width // 4),
            "num_attention_heads": 6, "num_key_value_heads": 2,
            "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "use_sliding_window": False,
            "attention_bias": False,
        }  # fmt: skip
    return sizes | heads | {
        "architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2",
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "bias": False, "pad_token_id": 2,
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1000000},
    }  # fmt: skip


def tiny_config(
    llm: str, tokenizer: PreTrainedTokenizerFast, *, image_size: int, patch_size: int, width: int, layers: int
) -> InternVLChatConfig:
    """Return the configuration: the published one with other sizes.

    Args:
        llm: key of :data:`TEMPLATE_NAMES`.
        tokenizer: its length is the vocabulary.
        image_size: tile side in pixels.
        patch_size: patch side in pixels.
        width: channels of the language model; the vision encoder has three quarters.
        layers: of the language model; the vision encoder has one more.
    """
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
        llm_config=llm_config(llm, tokenizer, width=width, layers=layers),
        template=TEMPLATE_NAMES[llm],
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
    llm: str = "internlm2",
    vision: Path | None = None,
    vocab_size: int = 1024,
    image_size: int = 224,
    patch_size: int = 28,
    width: int = 256,
    layers: int = 4,
    dtype: str = "float32",
    seed: int = 0,
) -> InternVLChatModel:
    """Write a checkpoint folder and return the model.

    Args:
        out: folder to write.
        corpus: annotation files whose texts the vocabulary is learnt from.
        llm: key of :data:`TEMPLATE_NAMES`.
        vision: checkpoint of the same sizes whose vision encoder to take, as all published members have one encoder.
        vocab_size: pieces of the vocabulary, without most special tokens.
        image_size: tile side in pixels.
        patch_size: patch side in pixels.
        width: channels of the language model.
        layers: of the language model.
        dtype: of the weights.
        seed: of the weights.
    """
    out.mkdir(parents=True, exist_ok=True)
    template_name = TEMPLATE_NAMES[llm]
    lines = texts(corpus, template_name)
    if llm == "internlm2":
        tokenizer = train_internlm2_vocabulary(out, lines, vocab_size)
    else:
        tokenizer = train_qwen_vocabulary(out, lines, vocab_size, llm)
    torch.manual_seed(seed)
    config = tiny_config(llm, tokenizer, image_size=image_size, patch_size=patch_size, width=width, layers=layers)
    model = InternVLChatModel(config)
    if vision is not None:
        model.vision_model.load_state_dict(load_model(vision).model.vision_model.state_dict())
    model.to(getattr(torch, dtype))
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|im_start|>")]
    start = {} if tokenizer.bos_token_id is None else {"bos_token_id": tokenizer.bos_token_id}
    model.generation_config.update(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id, **start)
    model.save_pretrained(out)
    write_chat_tokenizer(out, tokenizer, template_name)
    write_model_files(out, config)
    return model


@ends_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write the checkpoint to")
    parser.add_argument(
        "--corpus", type=Path, action="append", required=True, help="annotation JSONL for the vocabulary"
    )
    parser.add_argument(
        "--llm", choices=TEMPLATE_NAMES, default="internlm2", help="its language model (default %(default)s)"
    )
    parser.add_argument("--vision", type=Path, help="checkpoint to take the vision encoder of")
    parser.add_argument("--vocab-size", type=int, default=1024, help="pieces (default %(default)s)")
    parser.add_argument("--image-size", type=int, default=224, help="tile side in px (default %(default)s)")
    parser.add_argument("--patch-size", type=int, default=28, help="patch side in px (default %(default)s)")
    parser.add_argument("--width", type=int, default=256, help="language model channels (default %(default)s)")
    parser.add_argument("--layers", type=int, default=4, help="language model layers (default %(default)s)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    model = make_tiny_base(
        args.out,
        args.corpus,
        llm=args.llm,
        vision=args.vision,
        vocab_size=args.vocab_size,
        image_size=args.image_size,
        patch_size=args.patch_size,
        width=args.width,
        layers=args.layers,
        dtype=args.dtype,
        seed=args.seed,
    )
    size = sum(file.stat().st_size for file in args.out.iterdir()) / 1e6
    print(f"{args.out}: {model.num_parameters():,} parameters, {size:.1f} MB")


if __name__ == "__main__":
    main()
