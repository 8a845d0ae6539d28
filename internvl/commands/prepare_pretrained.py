"""Make a downloaded checkpoint folder work on today's transformers and servers, or check that it is complete.

    python tools/prepare_pretrained.py pretrained/InternVL2-2B
    python tools/prepare_pretrained.py pretrained/InternVL2-2B --check

The model files published with InternVL2 fail in ``from_pretrained`` on transformers 5. This puts those of this
repository in their place, with a fast tokenizer, the processor files, and the chat template of training (the
published one leaves out the system message and puts a newline behind every turn, so that a server would ask tuned
models in words they were not trained on). The originals are kept in ``original_files/``. Weights are not touched, and
config.json only where transformers needs it. Running it again changes nothing. This project's own commands load an
unprepared folder, too; ``AutoModel``, servers and the documented ``cp`` lines need a prepared one.
"""

import argparse
import shutil
import sys
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from internvl.cli import Parser
from internvl.errors import UserError, ends_on_user_error
from internvl.json_files import read_object
from internvl.logging_utils import setup_logging
from internvl.model.chat_template import chat_template
from internvl.model.checkpoint import Checkpoint
from internvl.model.internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl.model.internvl_chat.conversation import TEMPLATES, ConversationTemplate, get_conv_template
from internvl.model.internvl_chat.modeling_internvl_chat import InternVLChatModel
from internvl.model.loading import load_checkpoint_tokenizer, load_config
from internvl.model.packaging import (
    CHAT_TEMPLATE,
    model_code_files,
    read_generation,
    write_chat_tokenizer,
    write_generation,
    write_model_files,
)
from internvl.model.tiling import PREPROCESSOR_CONFIG, read_tiling

ORIGINALS = "original_files"
TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", CHAT_TEMPLATE)


def _open_checkpoint(folder: Path) -> Checkpoint:
    """Open a model folder; an adapter has nothing to prepare."""
    checkpoint = Checkpoint(folder)
    if checkpoint.is_adapter:
        raise UserError(f"{folder}: is an adapter. Name the folder of a whole model.")
    return checkpoint


def prepare(folder: Path) -> list[str]:
    """Prepare a folder and return what was done, one sentence each."""
    checkpoint = _open_checkpoint(folder)
    config = load_config(checkpoint)
    template = _trained_template(config, folder)
    tokenizer = load_checkpoint_tokenizer(checkpoint)
    published, wanted = _served_template(folder), _rendered(template, tokenizer)
    kept = _keep_originals(folder, wanted)
    if kept or published != wanted:
        write_chat_tokenizer(folder, tokenizer, template.name)
    write_generation(folder, read_generation(folder), tokenizer, template.name)
    write_model_files(folder, config)
    done = [f"Kept in {folder / ORIGINALS}: {', '.join(kept)}"] if kept else []
    if published is not None and published != wanted:
        done.append(f"Replaced the chat template: the published one does not render the {template.name} prompt.")
    return done


def _trained_template(config: InternVLChatConfig, folder: Path) -> ConversationTemplate:
    """Return the conversation template of a checkpoint.

    Raises:
        UserError: its config names none.
    """
    if config.template is None:
        raise UserError(f"{folder / 'config.json'}:template: is missing. Set it to one of: {', '.join(TEMPLATES)}.")
    return get_conv_template(config.template)


def _served_template(folder: Path) -> str | None:
    """Return the chat template that a tokenizer or server reads from a folder: the file of its own goes first.

    Raises:
        UserError: tokenizer_config.json is damaged.
    """
    if (folder / CHAT_TEMPLATE).is_file():
        return (folder / CHAT_TEMPLATE).read_text(encoding="utf-8")
    file = folder / "tokenizer_config.json"
    return read_object(file, "Copy the file again").get("chat_template") if file.is_file() else None


def _rendered(template: ConversationTemplate, tokenizer: PreTrainedTokenizerFast) -> str:
    """Return a conversation template in Jinja, for a tokenizer with or without a first token."""
    return chat_template(template, has_bos=tokenizer.bos_token is not None)


def _keep_originals(folder: Path, template: str) -> list[str]:
    """Copy what is about to be replaced into ``original_files/``; files that are ours already do not count.

    Returns their names.
    """
    ours = {file.name: file.read_bytes() for file in model_code_files()}
    replaced = [file for file in folder.glob("*.py") if ours.get(file.name) != file.read_bytes()]
    if not (folder / "tokenizer.json").is_file() or _served_template(folder) != template:
        replaced += [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if (folder / PREPROCESSOR_CONFIG).is_file() and not read_tiling(folder):
        replaced.append(folder / PREPROCESSOR_CONFIG)
    for file in replaced:
        (folder / ORIGINALS).mkdir(exist_ok=True)
        if not (folder / ORIGINALS / file.name).exists():
            shutil.copyfile(file, folder / ORIGINALS / file.name)
        if file.suffix == ".py":
            # Published files that have no counterpart here (slow tokenizer, flash attention) would still be found.
            file.unlink()
    return sorted(file.name for file in replaced)


def check(folder: Path) -> list[str]:
    """Return what is wrong with a folder, one sentence each: weights, shapes, tokenizer, model files."""
    checkpoint = _open_checkpoint(folder)
    config = load_config(checkpoint)
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in InternVLChatModel(config).state_dict().items()}
    stored = {name: info.shape for name, info in checkpoint.tensors.items()}
    problems = [
        f"{name} is missing from the weights. Download the folder again." for name in expected if name not in stored
    ]
    problems += [
        f"{name} has shape {stored[name]} instead of {shape}. Weights and config.json do not belong together."
        for name, shape in expected.items()
        if name in stored and stored[name] != shape
    ]
    tokenizer = load_checkpoint_tokenizer(checkpoint)
    if len(tokenizer) > config.llm_config.vocab_size:  # Qwen3's embeddings have rows to spare
        problems.append(
            f"The tokenizer has {len(tokenizer)} tokens and the model {config.llm_config.vocab_size}. Download the "
            "tokenizer files again."
        )
    template = _trained_template(config, folder)
    prepare = f"Run tools/prepare_pretrained.py {folder}."
    if _served_template(folder) != _rendered(template, tokenizer):
        problems.append(f"The chat template is not that of the {template.name} prompt. {prepare}")
    end_mark = tokenizer.convert_tokens_to_ids(template.end_mark)
    stops = read_generation(folder).get("eos_token_id")
    if end_mark not in (stops if isinstance(stops, list) else [stops]):
        problems.append(f"generation_config.json does not end answers at {template.end_mark} ({end_mark}). {prepare}")
    outdated = [
        file.name
        for file in model_code_files()
        if not (folder / file.name).is_file() or (folder / file.name).read_bytes() != file.read_bytes()
    ]
    if outdated:
        problems.append(f"{outdated[0]} is not this repository's. {prepare}")
    return problems


@ends_on_user_error
def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="checkpoint folder, as downloaded")
    parser.add_argument("--check", action="store_true", help="change nothing; status 2 if something is wrong")
    args = parser.parse_args(argv)
    setup_logging()
    if args.check:
        problems = check(args.folder)
        for problem in problems:
            print(f"{args.folder}: {problem}", file=sys.stderr)
        if not problems:
            size = sum(file.stat().st_size for file in Checkpoint(args.folder).weight_files) / 1e9
            print(f"{args.folder}: complete ({size:.2f} GB of weights).")
        return 2 if problems else 0
    for sentence in prepare(args.folder):
        print(sentence)
    print(f"{args.folder}: ready for transformers 4.57 to 5.24.")
    return 0
