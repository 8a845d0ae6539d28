"""Numbers of the shipped tiny base that a device has to reproduce: losses of ten steps, answers, logits."""

import json
import os
from pathlib import Path

import torch
from acceptance.checks import REPOSITORY, TINY

from internvl.inference.engine import Engine, Request
from internvl.json_files import write_json
from internvl.train import internvl_chat_finetune

GOLDEN = Path(__file__).with_name("golden.json")
IMAGES = REPOSITORY / "data" / "habitat" / "images" / "val"
QUESTION = "Provide a one-sentence caption for the provided image."
NUM_ANSWERS, NUM_LOGITS, TOP = 8, 3, 5
STEPS = 10
BEAMS = (1, 3)
WAYS = {
    "plain": [],
    "shared": ["--share_image_prefix", "True"],
    "packed": ["--packing", "True"],
    "recomputed": ["--grad_checkpoint", "True"],
}
RECIPE = [
    *["--freeze_llm", "True", "--freeze_mlp", "True", "--freeze_backbone", "True"],
    *["--use_llm_lora", "8", "--lora_dropout", "0", "--learning_rate", "1e-3", "--lr_scheduler_type", "constant"],
    *["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2", "--logging_steps", "1"],
    *["--save_strategy", "no", "--report_to", "none", "--dataloader_num_workers", "0", "--disable_tqdm", "True"],
]


def losses(out: Path, *flags: str, device: str, steps: int = STEPS) -> dict[str, list[float]]:
    """Train the tiny base in this process; return ``loss`` and ``grad_norm`` of each step.

    Args:
        out: the output folder.
        flags: of the finetune, beside the recipe.
        device: cuda or cpu.
        steps: optimizer steps.
    """
    given = ["--model_name_or_path", str(TINY), "--meta_path", str(REPOSITORY / "shell" / "data" / "habitat.json")]
    given += ["--output_dir", str(out), "--max_steps", str(steps), "--use_cpu", str(device == "cpu")]
    internvl_chat_finetune.main([*given, *RECIPE, *flags])
    history = json.loads((out / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    logged = [entry for entry in history if "loss" in entry]
    return {name: [entry[name] for entry in logged] for name in ("loss", "grad_norm")}


def requests(engine: Engine, count: int) -> list[Request]:
    """Return the question about the first ``count`` images of the val set."""
    files = sorted(IMAGES.glob("*.jpg"))[:count]
    return [Request([engine.read(file)], QUESTION) for file in files]


def answers(engine: Engine, beams: int) -> list[str]:
    """Return the answers to the golden questions, in one batch."""
    return engine.answer(requests(engine, NUM_ANSWERS), max_new_tokens=30, num_beams=beams, do_sample=False)


@torch.no_grad()
def top_logits(engine: Engine) -> list[list[float]]:
    """Return the highest logits of the answers' first tokens, a list of ``TOP`` numbers for each question."""
    found = []
    for request in requests(engine, NUM_LOGITS):
        device = engine.model.device
        ids = torch.tensor([engine.prompt_ids(request.turns(), [len(image) for image in request.images])])
        tiles = torch.cat([image.tiles for image in request.images])
        logits = engine.model(pixel_values=tiles.to(device), input_ids=ids.to(device)).logits[0, -1].float()
        found.append(logits.topk(TOP).values.tolist())
    return found


def write_golden(work: Path) -> None:
    """Make the numbers on the CPU in float32, with one thread, and write them beside this file."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    trained = {way: losses(work / way, *flags, device="cpu") for way, flags in WAYS.items()}
    engine = Engine.load(TINY, precision="fp32", device="cpu")
    write_json(
        GOLDEN,
        {
            "training": trained,
            "answers": {str(beams): answers(engine, beams) for beams in BEAMS},
            "top_logits": top_logits(engine),
        },
    )


def read_golden() -> dict:
    return json.loads(GOLDEN.read_text(encoding="utf-8"))
