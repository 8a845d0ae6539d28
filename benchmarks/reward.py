"""Time a step of training on the score, with answers that share their image and with answers that each have their own.

    python benchmarks/reward.py --json reward.json
    python benchmarks/reward.py --size full --images 8      # InternVL2-2B's shape, for a GPU

A step draws N answers about each image, of a fixed length, and runs forward and backward on all of them, LoRA on the
language model. Shared, as ``cider.sh`` does: an image goes through the model once for drawing and once for training.
Unshared, as frameworks without shared images do: each answer is drawn from a prompt of its own, and trained as a row
of its own. Both ways train on the same answers, in one process, in turn, ``--rounds`` times; the figures are medians,
and the gradients must be the same.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from random_checkpoint import FULL, PUBLISHED, SIZES, image_token_id, size_config
from rich.console import Console
from rich.table import Table
from train_rows import MadeUpRows, RowShape

from internvl.data.batch import Batch, Collator
from internvl.device import detect_device
from internvl.errors import UserError, ends_on_user_error
from internvl.inference.engine import DTYPES
from internvl.json_files import write_json
from internvl.model.adapter import choose_trainable, unwrapped
from internvl.model.internvl_chat.causal_lm import IGNORE_INDEX
from internvl.model.internvl_chat.modeling_internvl_chat import InternVLChatModel
from internvl.model.loading import choose_attention
from internvl.model.lora_recipe import LoraRecipe
from internvl.model.vision_cache import image_features
from internvl.reward.answer_sampling import Policy, SampledAnswer, sample_answers
from internvl.reward.objective import make_batch
from internvl.reward.prompts import Prompt

NO_TOKEN = -1  # no answer ends early: all have the same length
WAYS = ("shared", "unshared")


def make_prompts(model: InternVLChatModel, num_images: int, tiles: int) -> list[Prompt]:
    """Return one question about each of ``num_images`` images."""
    rows = MadeUpRows(RowShape(images=num_images, captions=1, tiles=tiles), model.config)
    prompts = []
    for key, (sample, image) in enumerate(zip(rows.samples, rows.images, strict=True)):
        asked = [i for i, label in zip(sample.input_ids, sample.labels, strict=True) if label == IGNORE_INDEX]
        prompts.append(Prompt(key, torch.tensor(asked), (image,), (), (), f"image {key}"))
    return prompts


def draw(
    model: InternVLChatModel, prompts: Sequence[Prompt], count: int, policy: Policy, length: int
) -> list[list[SampledAnswer]]:
    """Return ``count`` answers of each prompt, as cider.sh draws them."""
    return sample_answers(
        model, prompts, policy, num_samples=count, max_new_tokens=length, end_id=NO_TOKEN, pad_id=0, seed=0
    )


class Step:
    """One step in both ways, on the answers that the shared way has drawn."""

    def __init__(self, wrapped: torch.nn.Module, prompts: list[Prompt], num_samples: int, new_tokens: int):
        self.wrapped, self.model = wrapped, unwrapped(wrapped)
        self.prompts, self.num_samples, self.new_tokens = prompts, num_samples, new_tokens
        self.policy = Policy(1.0)
        rng = np.random.default_rng(0)
        self.weights = rng.normal(size=(len(prompts), num_samples)) / (len(prompts) * num_samples)
        self.collate = Collator(0, self.model.config.image_size, packed=True, keep_images=True)
        self.answers = draw(self.model, prompts, num_samples, self.policy, new_tokens)

    def run(self, way: str) -> tuple[float, float, int]:
        """Return the seconds of drawing and of training, and the tokens that training reads."""
        started = time.perf_counter()
        if way == "shared":
            draw(self.model.eval(), self.prompts, self.num_samples, self.policy, self.new_tokens)
            batch = make_batch(self.prompts, self.answers, self.weights, self.collate)
        else:
            alone = [replace(prompt, key=n) for n, prompt in enumerate(self.prompts * self.num_samples)]
            draw(self.model.eval(), alone, 1, self.policy, self.new_tokens)
            single = [[of_prompt[n]] for n in range(self.num_samples) for of_prompt in self.answers]
            batch = make_batch(alone, single, self.weights.T.reshape(-1, 1), self.collate)
        drawn = time.perf_counter()
        self.wrapped.train()
        self.wrapped.zero_grad()
        self.train(batch.to(self.model.device))
        return drawn - started, time.perf_counter() - drawn, batch.inputs["input_ids"].numel()

    def train(self, batch: Batch) -> None:
        assert batch.images is not None
        with torch.no_grad():  # the encoder is frozen, as in the recipe
            features = image_features(self.model, batch.images)
        inputs = batch.model_inputs(features)
        self.wrapped(**inputs, num_items_in_batch=1, return_logits=False).loss.backward()
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()

    def gradients(self) -> torch.Tensor:
        """Return all gradients, float32 (K,)."""
        grads = [parameter.grad for parameter in self.wrapped.parameters() if parameter.grad is not None]
        return torch.cat([grad.float().flatten() for grad in grads])


def measure(step: Step, rounds: int, *, exact: bool) -> dict:
    """Return seconds and tokens of both ways.

    Raises:
        UserError: ``exact``, and the gradients differ.
    """
    gradients = {}
    for way in WAYS:  # warm-up
        step.run(way)
        gradients[way] = step.gradients()
    apart = float((gradients["shared"] - gradients["unshared"]).abs().max() / gradients["unshared"].abs().max())
    if exact and apart > 1e-4:
        raise UserError(f"The gradients of both ways differ by {apart:.1e} of the largest. Please report this.")
    taken = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            taken[way].append(step.run(way))
    figures = {}
    for way in WAYS:
        drawing, training, tokens = zip(*taken[way], strict=True)
        figures[way] = {
            "drawing": statistics.median(drawing),
            "training": statistics.median(training),
            "seconds": statistics.median(map(sum, zip(drawing, training, strict=True))),
            "tokens": tokens[0],
        }
    return {
        **figures,
        "faster": figures["unshared"]["seconds"] / figures["shared"]["seconds"],
        "gradients_apart": apart,
    }


def print_figures(figures: dict) -> None:
    title = (
        f"{figures['images']} images a step, {figures['new_tokens']} tokens an answer ({figures['size']}, "
        f"{figures['dtype']}, {figures['device']})"
    )
    table = Table("tiles", "answers", "way", title=title)
    for column in ("tokens trained", "drawing", "training", "seconds a step", "faster"):
        table.add_column(column, justify="right")
    for point in figures["points"]:
        for way in WAYS:
            one = point[way]
            seconds = (f"{one[part]:.2f}" for part in ("drawing", "training", "seconds"))
            faster = f"{point['faster']:.2f} ×" if way == "shared" else ""
            table.add_row(str(point["tiles"]), str(point["answers"]), way, f"{one['tokens']:,}", *seconds, faster)
        table.add_section()
    Console().print(table)


def compare(args: argparse.Namespace) -> dict:
    """Measure all points and return the figures."""
    device, precision, _ = detect_device()
    dtype = args.dtype or precision
    if args.threads:
        torch.set_num_threads(args.threads)
    config = size_config(args.size, published=args.published)
    torch.manual_seed(0)
    attention = choose_attention(DTYPES[dtype], device)
    model = InternVLChatModel._from_config(config, dtype=DTYPES[dtype], attn_implementation=attention)
    model.img_context_token_id = image_token_id(model.config)
    wrapped = choose_trainable(
        model.to(device), freeze_llm=True, freeze_backbone=True, freeze_mlp=True, use_llm_lora=args.rank,
        use_backbone_lora=0, lora=LoraRecipe(dropout=0.0),
    )  # fmt: skip
    points = [
        {
            "tiles": tiles,
            "answers": answers,
            **measure(
                Step(wrapped, make_prompts(model, args.images, tiles), answers, args.new_tokens),
                args.rounds,
                exact=dtype == "fp32",
            ),
        }
        for tiles in args.tiles
        for answers in args.answers
    ]
    return {
        "size": args.size,
        "dtype": dtype,
        "device": torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads",
        **{name: getattr(args, name) for name in ("images", "new_tokens", "rounds", "rank")},
        "points": points,
    }


@ends_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=[*SIZES, FULL], default="mid", help="of the model (default %(default)s)")
    parser.add_argument("--published", type=Path, default=PUBLISHED, help="folder with config.json, for --size full")
    parser.add_argument("--dtype", choices=list(DTYPES), help="default: the best of this machine")
    parser.add_argument("--images", type=int, default=2, help="of a step (default %(default)s)")
    parser.add_argument("--tiles", type=int, nargs="+", default=[1, 7], help="of an image (default 1 and 7)")
    parser.add_argument("--answers", type=int, nargs="+", default=[5, 10], help="of an image (default 5 and 10)")
    parser.add_argument("--new-tokens", type=int, default=22, help="of an answer (default %(default)s)")
    parser.add_argument("--rank", type=int, default=128, help="of LoRA (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default %(default)s")
    parser.add_argument("--threads", type=int, help="default: PyTorch's own choice")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    args = parser.parse_args(argv)
    figures = compare(args)
    print_figures(figures)
    if args.json:
        write_json(args.json, figures)


if __name__ == "__main__":
    main()
