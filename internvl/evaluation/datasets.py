"""Caption sets: where their pictures and references are, and what is asked of the model."""

import json
from dataclasses import dataclass
from pathlib import Path

from internvl.errors import UserError
from internvl.evaluation.score import read_json

REGISTRY = Path(__file__).resolve().parents[2] / "eval" / "caption" / "datasets.json"
# The original evaluation's prompt and limits for all its caption sets.
PROMPT = "Provide a one-sentence caption for the provided image."
MIN_NEW_TOKENS, MAX_NEW_TOKENS = 8, 30


@dataclass(frozen=True)
class CaptionSet:
    """Pictures to caption, ``images`` as (id, path), and ``ground_truth`` in COCO captions format."""

    name: str
    images: list[tuple[int, Path]]
    ground_truth: dict
    ground_truth_file: Path
    prompt: str = PROMPT
    min_new_tokens: int = MIN_NEW_TOKENS
    max_new_tokens: int = MAX_NEW_TOKENS


def known_sets() -> dict[str, dict]:
    """Return the registry: name → root, annotation and ground_truth, relative to the repository root."""
    return json.loads(REGISTRY.read_text(encoding="utf-8"))


def read_caption_set(name: str) -> CaptionSet:
    """Read a registered set and check that all it needs is there.

    Raises:
        UserError: the set is unknown, or a file or picture of it is missing.
    """
    registry = known_sets()
    if name not in registry:
        raise UserError(f"{REGISTRY}: has no data set {name!r}. Use one of {', '.join(registry)}, or add an entry.")
    entry = registry[name]
    repository = REGISTRY.parents[2]
    annotation, ground_truth = repository / entry["annotation"], repository / entry["ground_truth"]
    images = read_images(annotation, repository / entry["root"])
    truth = read_json(ground_truth)
    if not isinstance(truth, dict) or "annotations" not in truth:
        raise UserError(
            f"{ground_truth}: is not in COCO captions format (no 'annotations'). See eval/caption/README.md."
        )
    missing = [path for _, path in images if not path.is_file()]
    if missing:
        raise UserError(
            f"{missing[0]}: {len(missing)} of {len(images)} pictures of {name} are missing, this one first. "
            f"Put them under {repository / entry['root']}."
        )
    referenced = {annotation["image_id"] for annotation in truth["annotations"]}
    unknown = [image_id for image_id, _ in images if image_id not in referenced]
    if unknown:
        raise UserError(
            f"{ground_truth}: has no caption for {len(unknown)} of {len(images)} pictures, first id {unknown[0]}. "
            "Use the ground truth that belongs to the annotation file."
        )
    return CaptionSet(name=name, images=images, ground_truth=truth, ground_truth_file=ground_truth)


def read_images(annotation: Path, root: Path) -> list[tuple[int, Path]]:
    """Return (id, path) of each picture, from either layout in use.

    A list of ``{"image": path}``, as for COCO, takes the id from the digits behind the last underscore of the name;
    a COCO-format object, as for Flickr30k and NoCaps, has ``images`` with ``id`` and ``file_name`` or ``image``.
    """
    content = read_json(annotation)
    try:
        if isinstance(content, list):
            return [(int(Path(item["image"]).stem.rsplit("_", 1)[-1]), root / item["image"]) for item in content]
        return [(item["id"], root / (item.get("file_name") or item["image"])) for item in content["images"]]
    except (KeyError, TypeError, ValueError) as err:
        raise UserError(
            f"{annotation}: an entry lacks its picture or id ({err!r}). See eval/caption/README.md for the form."
        ) from err
