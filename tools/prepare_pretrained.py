"""Make a downloaded checkpoint folder work on transformers 5, or check that it is complete.

    python tools/prepare_pretrained.py pretrained/InternVL2-2B
    python tools/prepare_pretrained.py pretrained/InternVL2-2B --check

The model files published with InternVL2 fail in ``from_pretrained`` on transformers 5. This puts those of this
repository in their place, with a fast tokenizer and the processor files, and keeps the originals in
``original_files/``. Weights are not touched, and config.json only where transformers 5 needs it. Running it again
changes nothing. This project's own commands load an unprepared folder, too; ``AutoModel`` and the documented ``cp``
lines need a prepared one.
"""

import argparse
import shutil
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from internvl.errors import UserError, ends_on_user_error
from internvl.logging_utils import setup_logging
from internvl.model.checkpoint import Checkpoint
from internvl.model.internvl_chat.modeling_internvl_chat import InternVLChatModel
from internvl.model.loading import load_checkpoint_tokenizer, load_config
from internvl.model.packaging import model_code_files, write_model_files

ORIGINALS = "original_files"
TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open a model folder; an adapter has nothing to prepare."""
    checkpoint = Checkpoint(folder)
    if checkpoint.is_adapter:
        raise UserError(f"{folder}: is an adapter. Name the folder of a whole model.")
    return checkpoint


def prepare(folder: Path) -> list[str]:
    """Prepare a folder and return the names of the files that were kept aside."""
    checkpoint = open_checkpoint(folder)
    config = load_config(checkpoint)
    kept = keep_originals(folder)
    tokenizer = load_checkpoint_tokenizer(checkpoint)
    if not (folder / "tokenizer.json").is_file():
        tokenizer.save_pretrained(folder)
    write_model_files(folder, config)
    return kept


def keep_originals(folder: Path) -> list[str]:
    """Copy what is about to be replaced into ``original_files/``; files that are ours already do not count."""
    ours = {file.name: file.read_bytes() for file in model_code_files()}
    replaced = [file for file in folder.glob("*.py") if ours.get(file.name) != file.read_bytes()]
    if not (folder / "tokenizer.json").is_file():
        replaced += [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
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
    checkpoint = open_checkpoint(folder)
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
    if len(tokenizer) != config.llm_config.vocab_size:
        problems.append(
            f"The tokenizer has {len(tokenizer)} tokens and the model {config.llm_config.vocab_size}. Download the "
            "tokenizer files again."
        )
    outdated = [
        file.name
        for file in model_code_files()
        if not (folder / file.name).is_file() or (folder / file.name).read_bytes() != file.read_bytes()
    ]
    if outdated:
        problems.append(f"{outdated[0]} is not this repository's. Run tools/prepare_pretrained.py {folder}.")
    return problems


@ends_on_user_error
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    kept = prepare(args.folder)
    if kept:
        print(f"Kept in {args.folder / ORIGINALS}: {', '.join(kept)}")
    print(f"{args.folder}: ready for transformers 5.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
