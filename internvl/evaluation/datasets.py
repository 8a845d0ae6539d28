"""Caption sets: registered ones, and rows of the training format; what is asked, and the references."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NotRequired, cast

from pydantic import ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import TypedDict

from internvl.data.annotation import AnnotationFile, Row, parse_line
from internvl.data.media import media_path
from internvl.data.meta import DatasetSpec, read_meta
from internvl.data.problems import RowError, raise_first
from internvl.data.row_groups import RowKey
from internvl.errors import UserError, shorten
from internvl.evaluation.questions import Question
from internvl.evaluation.score import references_by_image
from internvl.json_files import read_json, read_object
from internvl.model.internvl_chat.conversation import IMAGE_PLACEHOLDER, Turn
from internvl.repository import REPOSITORY
from internvl.schema import validate

REGISTRY = REPOSITORY / "eval" / "caption" / "datasets.json"
# The original evaluation's prompt and limits for all its caption sets.
PROMPT = "Provide a one-sentence caption for the provided image."
MIN_NEW_TOKENS, MAX_NEW_TOKENS = 8, 30
# Rows of the training format have answers of any length.
ROW_MIN_NEW_TOKENS, ROW_MAX_NEW_TOKENS = 1, 128


@with_config(ConfigDict(extra="forbid"))
class CaptionEntry(TypedDict):
    """An entry of the registry, as eval/caption/README.md explains it."""

    root: str
    annotation: str
    ground_truth: NotRequired[str]
    prompt: NotRequired[str]
    min_new_tokens: NotRequired[Annotated[int, Field(ge=0)]]
    max_new_tokens: NotRequired[Annotated[int, Field(ge=1)]]
    answers: NotRequired[bool]


ENTRY = TypeAdapter(CaptionEntry)


@dataclass(frozen=True)
class CaptionSet:
    """Questions, and the references in COCO captions format: ``ground_truth``, from a file unless that is None.

    ``clusters`` is what questions belong together by (``--cluster``), by id.
    """

    name: str
    questions: list[Question]
    ground_truth: dict
    ground_truth_file: Path | None = None
    min_new_tokens: int = MIN_NEW_TOKENS
    max_new_tokens: int = MAX_NEW_TOKENS
    clusters: dict[int | str, str] | None = None

    def first(self, limit: int | None) -> "CaptionSet":
        """Return the set with its first ``limit`` questions only; None keeps all."""
        return replace(self, questions=self.questions[:limit])

    def references(self) -> dict[int | str, list[str]]:
        """Return the captions that people gave, by id."""
        references: dict[int | str, list[str]] = {}
        for annotation in self.ground_truth["annotations"]:
            references.setdefault(annotation["image_id"], []).append(annotation["caption"])
        return references


def _known_sets() -> dict[str, CaptionEntry]:
    """Return the registry: name → entry, paths in it relative to the repository root.

    Raises:
        UserError: an entry is not as eval/caption/README.md says.
    """
    return {name: validate(ENTRY, entry, REGISTRY, name) for name, entry in read_object(REGISTRY).items()}


def present_sets() -> tuple[list[str], list[str]]:
    """Return the names of the registered sets of captions whose files are there, and a sentence for each that is not.

    Raises:
        UserError: none is.
    """
    present, absent = [], []
    for name, entry in _known_sets().items():
        if entry.get("answers"):
            continue
        files = [REPOSITORY / entry[key] for key in ("annotation", "ground_truth") if key in entry]
        missing = [file for file in files if not file.is_file()]
        if missing:
            absent.append(f"{name} is left out: {missing[0]} is not there (eval/caption/README.md).")
        else:
            present.append(name)
    if not present:
        raise UserError("\n".join([f"{REGISTRY}: no data set of it is there.", *absent]))
    return present, absent


def read_caption_set(
    name: str, prompt: str | None = None, *, allow_outside_root: bool = False, cluster: RowKey | None = None
) -> CaptionSet:
    """Read a registered set.

    Args:
        name: in the registry.
        prompt: replaces the set's own.
        allow_outside_root: whether paths may lead out of its root.
        cluster: what questions belong together by.

    Raises:
        UserError: the set is unknown, a file of it is missing or of another form, or an image is outside its root.
    """
    registry = _known_sets()
    if name not in registry:
        raise UserError(f"{REGISTRY}: has no data set {name!r}. Use one of {', '.join(registry)}, or add an entry.")
    entry = registry[name]
    annotation, root = REPOSITORY / entry["annotation"], REPOSITORY / entry["root"]
    limits: dict[str, Any] = {key: entry[key] for key in ("min_new_tokens", "max_new_tokens") if key in entry}
    if annotation.suffix == ".jsonl":
        if prompt or "prompt" in entry or "ground_truth" in entry:
            raise UserError(
                f"{REGISTRY}:{name}: its rows bring their own questions and references. Leave prompt and ground_truth "
                "away."
            )
        rows = read_rows(name, [annotation], root, allow_outside_root=allow_outside_root, cluster=cluster)
        return replace(rows, **limits)
    if "ground_truth" not in entry:
        raise UserError(f"{REGISTRY}:{name}: has no ground_truth. Give one, or a .jsonl of training rows.")
    ground_truth = REPOSITORY / entry["ground_truth"]
    turn = Turn("human", f"{IMAGE_PLACEHOLDER}\n{prompt or entry.get('prompt', PROMPT)}")
    images = read_images(annotation, root, allow_outside_root=allow_outside_root)
    questions = [Question(image_id, (turn,), str(annotation), (path,)) for image_id, path in images]
    truth = read_json(ground_truth)
    references = references_by_image(truth, str(ground_truth))
    unknown = [question.id for question in questions if not references.get(question.id)]
    if unknown:
        raise UserError(
            f"{ground_truth}: has no caption for {len(unknown)} of {len(questions)} images, first id {unknown[0]}. "
            "Use the ground truth that belongs to the annotation file."
        )
    clusters = {image_id: _cluster_of(cluster, path, root) for image_id, path in images} if cluster else None
    return CaptionSet(name, questions, cast(dict, truth), ground_truth, **limits, clusters=clusters)


def _cluster_of(cluster: RowKey, path: Path, root: Path) -> str:
    """Return what an image of a caption set, which has no other keys, belongs to by its path from the root.

    Raises:
        UserError: its path does not say.
    """
    try:
        name = path.relative_to(root) if path.is_relative_to(root) else path
        return cluster.of({"image": name.as_posix()}, "--cluster")
    except RowError as err:
        raise UserError(str(err)) from err


def read_images(annotation: Path, root: Path, *, allow_outside_root: bool = False) -> list[tuple[int | str, Path]]:
    """Return (id, path) of each image, from either layout in use.

    A list of ``{"image": path}``, as for COCO, takes the id from the digits behind the last underscore of the name;
    a COCO-format object, as for Flickr30k and NoCaps, has ``images`` with ``id`` and ``file_name`` or ``image``.

    Raises:
        UserError: it is neither, or a path leads out of ``root`` (unless allowed).
    """
    content = read_json(annotation)
    is_list = isinstance(content, list)
    items = content if is_list else content.get("images") if isinstance(content, dict) else None
    if not isinstance(items, list):
        raise UserError(f"{annotation}: holds no list of images. See eval/caption/README.md for the form.")
    found: dict[int | str, Path] = {}
    for number, item in enumerate(items, 1):
        where = f"{annotation}:image {number}"
        fields = item if isinstance(item, dict) else {}
        name = fields.get("image") if is_list else fields.get("file_name") or fields.get("image")
        digits = re.search(r"(?:^|_)([0-9]{1,18})$", Path(name).stem) if is_list and isinstance(name, str) else None
        image_id = int(digits[1]) if digits else fields.get("id")
        is_id = isinstance(image_id, (int, str)) and not isinstance(image_id, bool)
        if not isinstance(name, str) or not name or not is_id or (is_list and not digits):
            raise UserError(f"{where}: lacks its image or id ({shorten(item)}). See eval/caption/README.md.")
        image_id = cast(int | str, image_id)
        if image_id in found:
            raise UserError(f"{where}: has the id {image_id!r} of another image. Remove one of them.")
        found[image_id] = media_path(root, name, where, allow_outside_root=allow_outside_root)
    return list(found.items())


def read_custom_set(
    annotation: Path, root: Path, *, allow_outside_root: bool = False, cluster: RowKey | None = None
) -> CaptionSet:
    """Read a JSONL file of training rows as a set called "custom"; arguments as of :func:`read_rows`.

    Raises:
        UserError: it, or the folder ``root``, is not there, or rows are not as the README says.
    """
    if not root.is_dir():
        raise UserError(f"--root: {root} is not a folder. Give the folder that the paths in {annotation} start from.")
    return read_rows("custom", [annotation], root, allow_outside_root=allow_outside_root, cluster=cluster)


def read_train_sets(
    meta_path: Path, *, allow_outside_root: bool = False, cluster: RowKey | None = None
) -> list[CaptionSet]:
    """Read each data set of a training's meta file as a set called "train-<name>"; errors as above."""

    def read_spec(spec: DatasetSpec) -> CaptionSet:
        return read_rows(
            f"train-{spec.name}",
            spec.annotations,
            spec.root,
            max_tiles=spec.max_dynamic_patch,
            allow_outside_root=allow_outside_root,
            cluster=cluster,
        )

    return [read_spec(spec) for spec in read_meta(meta_path)]


def read_rows(
    name: str,
    files: Sequence[Path],
    root: Path,
    *,
    max_tiles: int | None = None,
    allow_outside_root: bool = False,
    cluster: RowKey | None = None,
) -> CaptionSet:
    """Read training rows as questions with references.

    Every answer of a row is one to compare with, its question asked after the turns before it as they are written.
    Rows that ask the same about the same images are one question with several references. Ids count from 1 in the
    order of first appearance.

    Args:
        name: of the set.
        files: JSONL.
        root: where paths of images start.
        max_tiles: the set's own limit on tiles of an image.
        allow_outside_root: whether paths may lead out of the root.
        cluster: what questions belong together by; of rows that ask the same, the first one counts.

    Raises:
        UserError: a file is missing or empty, or rows are not as they should be; names the first few.
    """
    questions: dict[tuple, Question] = {}
    references: list[dict] = []
    problems: list[str] = []
    clusters: dict[int | str, str] = {}
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: there is no such file. Give a JSONL file of conversations (README, data).")
        rows = AnnotationFile(file)
        for index in range(len(rows)):
            try:
                for asked, answer in _split_row(rows.row(index), root, max_tiles, allow_outside_root):
                    key = (asked.turns, asked.images, asked.video, asked.clip)
                    question = questions.setdefault(key, replace(asked, id=len(questions) + 1))
                    if cluster and question.id not in clusters:
                        clusters[question.id] = cluster.of(
                            parse_line(rows.line(index), rows.where(index)), rows.where(index)
                        )
                    references.append({"id": len(references) + 1, "image_id": question.id, "caption": answer})
            except RowError as err:
                problems.append(str(err))
    raise_first(problems)
    if not questions:
        raise UserError(f"{files[0]}: holds no rows. Add some.")
    truth = {"images": [{"id": question.id} for question in questions.values()], "annotations": references}
    return CaptionSet(
        name,
        list(questions.values()),
        truth,
        min_new_tokens=ROW_MIN_NEW_TOKENS,
        max_new_tokens=ROW_MAX_NEW_TOKENS,
        clusters=clusters if cluster else None,
    )


def _split_row(row: Row, root: Path, max_tiles: int | None, allow_outside_root: bool) -> list[tuple[Question, str]]:
    """Return each answer of a row with its question, whose id is left 0."""

    def path(name: str) -> Path:
        return media_path(root, name, row.where, allow_outside_root=allow_outside_root)

    images = [path(name) for name in row.images]
    video = path(row.video) if row.video else None
    pairs = []
    for position, turn in enumerate(row.turns):
        if turn.role == "gpt":
            turns = row.turns[:position]
            num_images = sum(before.value.count(IMAGE_PLACEHOLDER) for before in turns if before.role == "human")
            asked = Question(0, turns, row.where, tuple(images[:num_images]), video, row.clip, max_tiles)
            pairs.append((asked, turn.value))
    return pairs
