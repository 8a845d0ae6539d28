"""The caption evaluation: image ids and tensors from each annotation layout, results, scores, and its fixed facts."""

import re
import tempfile
from pathlib import Path
from types import SimpleNamespace

from internvl.distributed import shard
from internvl.evaluation.datasets import MAX_NEW_TOKENS, MIN_NEW_TOKENS, PROMPT, read_images
from internvl.evaluation.score import score_captions
from internvl.inference.engine import Engine
from internvl.model.internvl_chat import InternVLChatConfig
from internvl.model.internvl_chat.image_processing_internvl_chat import normalize_pixels
from tests.reference.caption import SCORE
from tests.reference.golden import compare_pixels, make_image, read_json
from tests.reference.runner import Report


def run(report: Report, folder: Path) -> None:
    """Check every data set named in ``eval_caption/expected.json``."""
    folder = folder / "eval_caption"
    expected = read_json(folder / "expected.json")
    facts = expected["facts"]
    for name, settings in facts["per_dataset"].items():
        report.equal(f"{name}/max_new_tokens", MAX_NEW_TOKENS, settings["max_new_tokens"])
        report.equal(f"{name}/min_new_tokens", MIN_NEW_TOKENS, settings["min_new_tokens"])
        if name in expected:
            with report.guard(name):
                check_images(report, name, folder, expected)
            with report.guard(f"{name}/scores"):
                check_scores(report, name, folder, expected)
    report.equal("prompt", PROMPT, facts["prompt"])
    for case in facts.get("shards", []):
        total, world = case["total"], case["world"]
        shares = [shard(list(range(total)), rank, world) for rank in range(world)]
        complete = sorted(index for share in shares for index in share) == list(range(total))
        same_sizes = [len(share) for share in shares] == [stop - start for start, stop in case["ranges"]]
        name = f"shards of {total} over {world}"
        report.differs(name, "shares in turn", complete and same_sizes, "shares are incomplete or of other sizes")


def annotation_files(folder: Path, name: str, expected: dict) -> list[Path]:
    """The data set's annotation file, and the file with its ground truth, which may be the same."""
    listed = expected["facts"]["per_dataset"][name]["annotation"]
    listed = listed if isinstance(listed, list) else [listed]
    return [folder / Path(listed[0]).name, folder / Path(listed[-1]).name]


def check_images(report: Report, name: str, folder: Path, expected: dict) -> None:
    """Read the annotation file, draw its images where it looks for them, and compare the tensors."""
    records = expected[name]
    with tempfile.TemporaryDirectory() as temporary:
        images = read_images(annotation_files(folder, name, expected)[0], Path(temporary))
        report.equal(f"{name}/image ids", [image_id for image_id, _ in images], [r["image_id"] for r in records])
        shapes = zip(expected["image_sizes"], expected["image_k"], strict=True)
        for (image_id, path), (size, k), record in zip(images, shapes, records, strict=True):
            path = path.with_suffix(".png")  # JPEG would change the pixels
            path.parent.mkdir(parents=True, exist_ok=True)
            make_image(*size, k).save(path)
            report.equal(f"{name}/{image_id}/prompt", PROMPT, record["input_text"])
            for key, digest in record.items():
                if not key.startswith("pixel_values"):
                    continue
                limit = int((re.search(r"max(\d+)", key) or [0, 1])[1])
                config = InternVLChatConfig(
                    force_image_size=digest["shape"][-1], use_thumbnail="thumb" in key, dynamic_image_size=True
                )
                engine = Engine(SimpleNamespace(config=config), None, max_tiles=limit)
                compare_pixels(report, f"{name}/{image_id}/{key}", normalize_pixels(engine.read(path).tiles), digest)


def check_scores(report: Report, name: str, folder: Path, expected: dict) -> None:
    """Score the stored result file, which has the layout of ours, against the ground truth."""
    results = read_json(folder / f"results_{name}.json")
    scores = score_captions(results, read_json(annotation_files(folder, name, expected)[1]), allow_empty=True)
    for metric, value in expected[f"{name}_scores"].items():
        report.within(f"{name}/{metric}", abs(scores.corpus[metric] - value), SCORE)
