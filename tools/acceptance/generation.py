"""Stage "generate": answers of a model of InternVL2-2B's shape, and the way out: merged, AutoModel, -hf copy."""

import shutil
import sys
import time
from pathlib import Path

import torch
from acceptance.checks import REPOSITORY, Figures, Setting, check, largest_difference, require
from acceptance.golden import QUESTION
from acceptance.material import base, run
from acceptance.training import finetune, pictures
from transformers import AutoModel, InternVLForConditionalGeneration

from internvl.inference.engine import Engine
from internvl.inference.requests import Request
from internvl.model.checkpoint import Checkpoint
from internvl.model.internvl_chat.image_processing_internvl_chat import normalize_pixels
from internvl.model.internvl_chat.tokenization import load_tokenizer
from internvl.model.vision_cache import image_features

TINY_STEPS = 3
NEW_TOKENS = 30
COMPARED = 4  # pictures whose answers are compared in float32


def adapter(setting: Setting) -> Path:
    """Return the folder of an adapter on the base, trained for a few steps at the first call."""
    folder = setting.work / "adapter"
    if not (folder / "adapter_model.safetensors").is_file():
        finetune(setting, folder, TINY_STEPS, "--learning_rate", "1e-3", "--max_dynamic_patch", "2")
    return folder


def merged(setting: Setting) -> Path:
    """Return the adapter merged into its base, ready for AutoModel, made at the first call."""
    folder = setting.work / "merged"
    if not (folder / "config.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        run(sys.executable, "tools/merge_lora.py", str(adapter(setting)), str(folder), "--skip-self-check")
        for file in [*base(setting).glob("*.py"), base(setting) / "config.json"]:
            shutil.copyfile(file, folder / file.name)
    return folder


def files(setting: Setting, count: int) -> list[Path]:
    return sorted((pictures(setting).parent / "images").glob("*.jpg"))[:count]


def _speed(setting: Setting, figures: Figures, checkpoint: Path, auto: bool = False) -> None:
    """Note images a second, milliseconds a token and peak memory, by batch size and beams."""
    engine = Engine.load(checkpoint, precision=setting.precision, device=setting.device, auto=auto, max_tiles=6)
    images = [engine.read(file) for file in files(setting, setting.size(64, 4))]
    started = time.perf_counter()
    with torch.no_grad():
        features = image_features(engine.model, images)
    setting.synchronize()
    figures["vision_milliseconds_an_image"] = 1000 * (time.perf_counter() - started) / len(images)
    require(bool(features.isfinite().all()), "features of images are not all numbers")
    tokens = setting.size(NEW_TOKENS, 4)
    for batch in (setting.size(16, 2), setting.size(64, 4)):
        for beams in (1, 3):
            settings = {"min_new_tokens": tokens, "max_new_tokens": tokens, "num_beams": beams, "do_sample": False}
            if not setting.rehearsal:
                torch.cuda.reset_peak_memory_stats()
            setting.synchronize()
            started = time.perf_counter()
            for start in range(0, len(images), batch):
                engine.answer([Request([image], QUESTION) for image in images[start : start + batch]], **settings)
            setting.synchronize()
            seconds = time.perf_counter() - started
            figures[f"batch {batch}, {beams} beams"] = {
                "images_per_second": len(images) / seconds,
                "milliseconds_a_token": 1000 * seconds / (tokens * -(-len(images) // batch)),
                "peak_gib": 0 if setting.rehearsal else torch.cuda.max_memory_allocated() / 2**30,
            }


@check("generate", 150)
def base_answers(setting: Setting, figures: Figures) -> None:
    """Time and memory of answers of the base."""
    _speed(setting, figures, base(setting))


@check("generate", 150)
def adapter_answers(setting: Setting, figures: Figures) -> None:
    """Time and memory of answers of an adapter, which is merged while it is loaded; from one process (--auto)."""
    _speed(setting, figures, adapter(setting), auto=not setting.rehearsal)


@check("generate", 150)
def merged_model(setting: Setting, figures: Figures) -> None:
    """The merged model has the very weights and answers that the adapter has, in float32."""
    folder = merged(setting)
    mine, theirs = Checkpoint(folder), Checkpoint(base(setting))
    changed = [name for name in mine.tensors if not torch.equal(mine.tensor(name), theirs.tensor(name))]
    figures["changed_tensors"] = len(changed)
    require(bool(changed), "merging changed nothing")
    answers = []
    for checkpoint in (adapter(setting), folder):
        engine = Engine.load(checkpoint, precision="fp32", device=setting.device, max_tiles=2)
        asked = [Request([engine.read(file)], QUESTION) for file in files(setting, COMPARED)]
        answers.append(engine.answer(asked, max_new_tokens=16, do_sample=False))
    figures["differ"] = sum(a != b for a, b in zip(*answers, strict=True))
    # An adapter is merged while it is loaded, to the very weights of the merged file.
    require(figures["differ"] == 0, f"{figures['differ']} of {COMPARED} answers differ")


@check("generate", 150)
def automodel(setting: Setting, figures: Figures) -> None:
    """AutoModel loads the merged folder on the device and answers, alone and in a batch."""
    folder = merged(setting)
    dtype = torch.float32 if setting.rehearsal else torch.bfloat16
    model = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=dtype).to(setting.device).eval()
    tokenizer = load_tokenizer(folder)
    engine = Engine.load(folder, precision=setting.precision, device=setting.device, max_tiles=2)
    tiles = [engine.read(file).tiles for file in files(setting, COMPARED)]
    generation = {"max_new_tokens": 12, "do_sample": False}
    single = [model.chat(tokenizer, image.to(setting.device), QUESTION, dict(generation)) for image in tiles]
    together = model.batch_chat(
        tokenizer,
        torch.cat(tiles).to(setting.device),
        [QUESTION] * len(tiles),
        dict(generation),
        num_patches_list=[len(image) for image in tiles],
    )
    figures["batched unlike single"] = sum(a != b for a, b in zip(single, together, strict=True))
    # Sums of another order are other numbers in half precision.
    require(not setting.rehearsal or not figures["batched unlike single"], "batched answers differ")


@check("generate", 200)
def hf_copy(setting: Setting, figures: Figures) -> None:
    """The copy in transformers' layout gives the same token ids, in float32."""
    folder = setting.work / "hf"
    run(sys.executable, "tools/convert_to_hf.py", str(merged(setting)), str(folder), "--overwrite")
    theirs = InternVLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).to(setting.device).eval()
    engine = Engine.load(merged(setting), precision="fp32", device=setting.device, max_tiles=2)
    differing = 0
    for file in files(setting, COMPARED):
        image = engine.read(file)
        request = Request([image], QUESTION)
        ids = torch.tensor([engine.prompt_ids(request.turns(), [len(image)])], device=setting.device)
        pixels = normalize_pixels(image.tiles)
        settings = {"max_new_tokens": 12, "do_sample": False}
        ours = engine.model.generate(pixels.to(setting.device), ids, torch.ones_like(ids), **settings)
        whole = theirs.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels.to(setting.device), **settings
        )
        differing += ours[0].tolist() != whole[0, ids.shape[1] :].tolist()
    figures["differ"] = differing
    require(differing == 0, f"{differing} of {COMPARED} answers have other ids")


@check("generate", 200)
def vision_cache(setting: Setting, figures: Figures) -> None:
    """An epoch that reads kept features has the losses of one that computes them."""
    flags = ["--max_dynamic_patch", "2", "--vision_cache", str(setting.work / "features")]
    losses = [finetune(setting, setting.work / f"cached-{epoch}", 4, *flags) for epoch in ("first", "second")]
    figures["difference"] = largest_difference(*losses)
    require(figures["difference"] <= (0 if setting.rehearsal else 1e-3), f"losses differ: {losses}")


@check("generate", 150)
def command_line(setting: Setting, figures: Figures) -> None:
    """tools/caption.py captions pictures with the adapter, as a user types it."""
    out = setting.work / "captions.jsonl"
    out.unlink(missing_ok=True)
    names = [str(file) for file in files(setting, COMPARED)]
    words = [sys.executable, str(REPOSITORY / "tools" / "caption.py"), str(adapter(setting)), *names]
    run(*words, "--prompt", QUESTION, "--out", str(out), "--max-new-tokens", "8")
    figures["captions"] = len(out.read_text(encoding="utf-8").splitlines())
    require(figures["captions"] == len(names), f"{figures['captions']} captions of {len(names)} pictures")
