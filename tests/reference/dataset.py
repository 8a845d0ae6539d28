"""The training set: items and collated batches from rows and images on disk, and the order of rows."""

import random
import tempfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch

from internvl.data.batch import Collator, Sample
from internvl.data.checking import check_dataset
from internvl.data.dataset import ConversationDataset
from internvl.data.meta import DatasetSpec
from internvl.data.sampling import group_by_length
from internvl.data.tokenize import RenderedRow, RenderSettings
from internvl.data.video import choose_frames
from internvl.model.internvl_chat.conversation import get_conv_template
from internvl.model.internvl_chat.image_processing_internvl_chat import normalize_pixels
from tests.conftest import pixels
from tests.reference.golden import compare_pixels, expand, make_image, read_json, sha256
from tests.reference.runner import Report
from tests.reference.tokens import pad_to


def run(report: Report, folder: Path, tokenizer) -> None:
    """Check ``dataset/``: every run of settings, the sampler, and frames once videos are read."""
    folder = folder / "dataset"
    expected, sampler = folder / "expected.json", folder / "length_grouped_sampler.json"
    if expected.is_file():
        content = read_json(expected)
        with tempfile.TemporaryDirectory() as temporary:
            for image in content["images"]:
                drawn = make_image(image["width"], image["height"], image["k"])
                report.equal(f"{image['name']}/formula", sha256(drawn), image["rgb_sha256"])
                drawn.save(Path(temporary) / image["name"])
            for number, golden in enumerate(content["runs"]):
                with report.guard(f"run {number}"):
                    check_run(report, f"run {number}", golden, folder / "data.jsonl", Path(temporary), tokenizer)
    if sampler.is_file():
        for number, golden in enumerate(read_json(sampler)):
            generator = torch.Generator().manual_seed(golden["torch_generator_seed"])
            order = group_by_length(golden["lengths"], golden["batch_size"], golden["world_size"], generator)
            report.equal(f"length_grouped_sampler/{number}", order, golden["indices"])
    if (folder / "frame_indices.json").is_file():
        for number, golden in enumerate(read_json(folder / "frame_indices.json")):
            check_frames(report, f"frame_indices/{number}", golden)


def check_frames(report: Report, name: str, golden: dict) -> None:
    """Choose frames with the recorded seeds."""
    indices = choose_frames(
        golden["num_frames"],
        golden["vlen"],
        sample=golden["sample"],
        fix_start=golden["fix_start"],
        input_fps=golden["input_fps"],
        max_num_frames=golden["max_num_frames"],
        rng=random.Random(golden["python_random_seed"]),
        permutation=np.random.RandomState(golden["numpy_random_seed"]).permutation,
    )
    report.equal(name, indices, golden["indices"])


def check_run(report: Report, name: str, golden: dict, rows: Path, images: Path, tokenizer) -> None:
    """Build the data set with a run's settings; compare its items and their batch."""
    settings = golden["settings"]
    options = {field.name: settings[field.name] for field in fields(RenderSettings) if field.name in settings}
    options |= {"template": get_conv_template(settings["template"]), "max_seq_length": settings["max_length"]}
    spec = DatasetSpec(name="golden", root=images, annotations=(rows,), data_augment=settings["is_train"])
    dataset = ConversationDataset([spec], tokenizer, RenderSettings(**options))
    report.equal(f"{name}/number of rows", len(dataset), len(golden["items"]))
    samples = []
    for number, item in enumerate(golden["items"]):
        with report.guard(f"{name}/row {item['id']}"):
            samples.append(dataset[number])
            check_item(report, f"{name}/row {item['id']}", samples[-1], item, tokenizer.pad_token_id)
    lengths = [sum(expand(item["attention_mask"])) for item in golden["items"]]
    found = check_dataset(dataset).lengths(dataset.index)
    found = found.tolist()
    report.equal(f"{name}/lengths", found, lengths)
    if golden.get("length_list", lengths) != lengths:
        note = "rows are not grouped by their exact lengths"
        report.differs(f"{name}/length_list", "exact lengths", found == lengths, note)
    if "collated" in golden:
        check_batch(report, f"{name}/batch", samples, golden, settings["image_size"])


def check_item(report: Report, name: str, sample: Sample, golden: dict, pad_token_id: int) -> None:
    """Compare a row; a text row's dummy tile, flagged 0, is made for a whole batch only and reaches nothing."""
    ids_and_labels = RenderedRow(sample.input_ids.tolist(), sample.labels.tolist())
    for key, values in pad_to(golden["length"], ids_and_labels, pad_token_id).items():
        report.equal(f"{name}/{key}", values, expand(golden[key]))
    if any(golden["image_flags"]):
        compare_pixels(report, f"{name}/pixel_values", normalize_pixels(pixels(sample)), golden["pixel_values"])
    else:
        report.check(f"{name}/no image", sample.images == [], "a text row has tiles")


def check_batch(report: Report, name: str, samples: list[Sample], golden: dict, image_size: int) -> None:
    """Compare the batch of all rows, padded with the golden values' id."""
    collated = golden["collated"]
    batch = Collator(pad_token_id=collated["pad_values"]["input_ids"], image_size=image_size)(samples)
    for key in ("input_ids", "labels"):
        report.equal(f"{name}/{key} shape", list(batch[key].shape), collated[key]["shape"])
        report.equal(f"{name}/{key}", sha256(batch[key]), collated[f"{key}_sha256_int64"])
    report.equal(
        f"{name}/attention_mask", batch["attention_mask"].sum(1).tolist(), collated["attention_mask_row_sums"]
    )
    real = sum(sum(item["image_flags"]) for item in golden["items"])
    shape = [real, *collated["pixel_values"]["shape"][1:]]
    report.equal(f"{name}/pixel_values shape", list(batch["pixel_values"].shape), shape)
    # Without flags all tiles are real.
    report.check(f"{name}/image_flags", "image_flags" not in batch, f"flags {batch.inputs.get('image_flags')}")
