"""Time answers about images: this project's way against its plain path and transformers' own model.

    python benchmarks/generate.py --json generate.json
    python benchmarks/generate.py --size full --images 32 --batch-size 16   # InternVL2-2B's shape, for a GPU

All ways have the same random weights, prompts and images; they run in one process, in turn, ``--rounds`` times, and
the figures are medians. In fp32 all must give the same ids; in half precision, where sums of another order are other
numbers, the answers that differ are counted.

- ours: images as bytes in batches, and with several beams every prompt is read once;
- plain: one image at a time, pixel values in float, and prompts repeated for every beam before they are read;
- transformers: ``InternVLForConditionalGeneration.generate`` on the same batches, pixel values in float.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from random_checkpoint import FULL, PUBLISHED, SIZES, image_token_id, size_config, write_pair
from rich.console import Console
from rich.table import Table
from train_rows import MadeUpRows, RowShape
from transformers import GenerationConfig, InternVLForConditionalGeneration

from internvl.device import detect_device
from internvl.errors import UserError, ends_on_user_error
from internvl.inference.engine import DTYPES
from internvl.json_files import write_json
from internvl.model.internvl_chat.causal_lm import IGNORE_INDEX
from internvl.model.internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl.model.internvl_chat.image_processing_internvl_chat import normalize_pixels
from internvl.model.internvl_chat.modeling_internvl_chat import InternVLChatModel
from internvl.model.loading import choose_attention
from internvl.model.vision_cache import TiledImage, image_features

BEAMS = (1, 3)


class Prompts(NamedTuple):
    """Prompts int64 (B, N) of equal length, and the images they are about: as bytes, and as (T, 3, S, S) floats."""

    input_ids: torch.Tensor
    images: list[TiledImage]
    pixel_values: list[torch.Tensor]

    def batches(self, size: int) -> Iterator["Prompts"]:
        for start in range(0, len(self.input_ids), size):
            yield Prompts(*(part[start : start + size] for part in self))


def make_prompts(config: InternVLChatConfig, num_images: int, tiles: int, device: str) -> Prompts:
    """Return one question about each of ``num_images`` images."""
    rows = MadeUpRows(RowShape(images=num_images, captions=1, tiles=tiles), config)
    ids = [
        [token for token, label in zip(sample.input_ids, sample.labels, strict=True) if label == IGNORE_INDEX]
        for sample in rows.samples
    ]
    return Prompts(
        torch.tensor(ids, device=device), rows.images, [normalize_pixels(p.tiles).to(device) for p in rows.images]
    )


def answer_ours(model: InternVLChatModel, prompts: Prompts, batch_size: int, config: GenerationConfig) -> torch.Tensor:
    """Return the answers' ids (B, new tokens)."""
    answers = []
    for batch in prompts.batches(batch_size):
        features = image_features(model, batch.images)
        mask = torch.ones_like(batch.input_ids)
        answers.append(model.generate(None, batch.input_ids, mask, features, generation_config=config))
    return torch.cat(answers)


@torch.no_grad()
def answer_plain(
    model: InternVLChatModel, prompts: Prompts, batch_size: int, config: GenerationConfig
) -> torch.Tensor:
    """Return the answers' ids (B, new tokens), one image at a time whatever ``batch_size`` is."""
    answers = []
    for batch in prompts.batches(1):
        features = model.extract_feature(batch.pixel_values[0])
        embeddings = model.embed(batch.input_ids, features)
        mask = torch.ones_like(batch.input_ids)
        answers.append(
            model.language_model.generate(inputs_embeds=embeddings, attention_mask=mask, generation_config=config)
        )
    return torch.cat(answers)


def answer_theirs(
    model: InternVLForConditionalGeneration, prompts: Prompts, batch_size: int, config: GenerationConfig
) -> torch.Tensor:
    """Return the answers' ids (B, new tokens)."""
    answers = []
    for batch in prompts.batches(batch_size):
        whole = model.generate(
            input_ids=batch.input_ids,
            attention_mask=torch.ones_like(batch.input_ids),
            pixel_values=torch.cat(batch.pixel_values),
            generation_config=config,
        )
        answers.append(whole[:, batch.input_ids.shape[1] :])
    return torch.cat(answers)


def load_ways(
    ours: Path, theirs: Path, dtype: torch.dtype, device: str
) -> dict[str, Callable[[Prompts, int, GenerationConfig], torch.Tensor]]:
    """Return each way as a function of prompts, batch size and generation settings."""
    model = InternVLChatModel.from_pretrained(ours, dtype=dtype, attn_implementation=choose_attention(dtype, device))
    model.img_context_token_id = image_token_id(model.config)
    model.to(device).eval()
    hf_model = InternVLForConditionalGeneration.from_pretrained(theirs, dtype=dtype).to(device).eval()
    return {
        "ours": lambda *given: answer_ours(model, *given),
        "plain": lambda *given: answer_plain(model, *given),
        "transformers": lambda *given: answer_theirs(hf_model, *given),
    }


def measure(
    ways: dict[str, Callable], prompts: Prompts, batch_size: int, rounds: int, config: GenerationConfig, *, exact: bool
) -> dict:
    """Return the images/s of each way.

    Raises:
        UserError: ``exact``, and a way gave other ids than ours.
    """
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    answers: dict[str, torch.Tensor] = {}
    for answer in ways.values():  # warm-up
        answer(next(prompts.batches(1)), 1, config)
    for _ in range(rounds):
        for way, answer in ways.items():
            started = time.perf_counter()
            answers[way] = answer(prompts, batch_size, config).cpu()  # waits for the device
            seconds[way].append(time.perf_counter() - started)
    differing = {way: int((ids != answers["ours"]).any(dim=1).sum()) for way, ids in answers.items() if way != "ours"}
    if exact and any(differing.values()):
        raise UserError(
            f"{config.num_beams} beams: of {len(prompts.input_ids)} answers, so many differ from ours: {differing}. "
            "Please report this."
        )
    num_images = len(prompts.input_ids)
    speed = {way: num_images / statistics.median(taken) for way, taken in seconds.items()}
    return {
        "seconds": seconds,
        "images_per_second": speed,
        "ours_over": {way: speed["ours"] / speed[way] for way in speed if way != "ours"},
        "answers_unlike_ours": differing,
        "different_answers": len({tuple(ids) for ids in answers["ours"].tolist()}),
    }


def print_figures(figures: dict) -> None:
    title = (
        f"{figures['images']} images of {figures['tiles']} tiles, {figures['new_tokens']} new tokens, batches of "
        f"{figures['batch_size']} ({figures['size']}, {figures['dtype']}, {figures['device']})"
    )
    table = Table("beams", "way", title=title)
    table.add_column("images/s", justify="right")
    table.add_column("speed of ours over it", justify="right")
    for beams, measured in figures["beams"].items():
        for way, speed in measured["images_per_second"].items():
            ratio = measured["ours_over"].get(way)
            table.add_row(beams, way, f"{speed:.2f}", f"{ratio:.2f} ×" if ratio else "")
        table.add_section()
    console = Console()
    console.print(table)
    differing = {beams: measured["answers_unlike_ours"] for beams, measured in figures["beams"].items()}
    console.print(f"Answers with other ids than ours, by beams: {differing}")


def compare(args: argparse.Namespace, folder: Path) -> dict:
    """Measure all ways with checkpoints in ``folder`` and return the figures."""
    device, precision, _ = detect_device()
    dtype = args.dtype or precision
    if args.threads:
        torch.set_num_threads(args.threads)
    config = size_config(args.size, published=args.published)
    ours, theirs = write_pair(folder / f"{args.size}-{config.llm_config.vocab_size}-{dtype}", config, DTYPES[dtype])
    ways = load_ways(ours, theirs, DTYPES[dtype], device)
    prompts = make_prompts(config, args.images, args.tiles, device)
    figures = {
        "size": args.size,
        "dtype": dtype,
        "device": torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads",
        **{name: getattr(args, name) for name in ("images", "tiles", "batch_size", "new_tokens", "rounds")},
        "beams": {},
    }
    for beams in BEAMS:
        settings = GenerationConfig(
            num_beams=beams,
            do_sample=False,
            max_new_tokens=args.new_tokens,
            min_new_tokens=args.new_tokens,
            eos_token_id=config.llm_config.eos_token_id,
            pad_token_id=config.llm_config.pad_token_id,
        )
        figures["beams"][str(beams)] = measure(
            ways, prompts, args.batch_size, args.rounds, settings, exact=dtype == "fp32"
        )
    return figures


@ends_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=[*SIZES, FULL], default="mid", help="of the model (default %(default)s)")
    parser.add_argument("--published", type=Path, default=PUBLISHED, help="folder with config.json, for --size full")
    parser.add_argument("--dtype", choices=list(DTYPES), help="default: the best of this machine")
    parser.add_argument("--images", type=int, default=8, help="default %(default)s")
    parser.add_argument("--tiles", type=int, default=7, help="of an image (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="of ours and transformers (default %(default)s)")
    parser.add_argument("--new-tokens", type=int, default=8, help="of an answer (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default %(default)s")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--folder", type=Path, help="folder for the checkpoints, kept (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args(argv)
    if args.folder:
        figures = compare(args, args.folder.resolve())
    else:
        with tempfile.TemporaryDirectory() as temporary:
            figures = compare(args, Path(temporary))
    print_figures(figures)
    if args.json:
        write_json(args.json, figures)


if __name__ == "__main__":
    main()
