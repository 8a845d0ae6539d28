"""Annotations of agents that move and of scenes that are asked about → rows: one reader a published form.

Each yields ``(where, row)``, or the error of a row that cannot be made. Paths are written relative to ``root``, which
is also where frames of a scene are looked up.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from internvl.data.image_files import image_suffixes
from internvl.data.problems import RowError
from internvl.errors import UserError, shorten
from internvl.model.internvl_chat.conversation import IMAGE_PLACEHOLDER

Rows = Iterator[tuple[str, dict | RowError]]
Records = Iterator[tuple[str, object | RowError]]
ACTIONS = {0: "stop", 1: "move forward", 2: "turn left", 3: "turn right", 4: "look up", 5: "look down"}
"""Numbers of Habitat's discrete actions, as R2R-CE and StreamVLN use them."""
START = -1  # what StreamVLN writes before the first action
QA_FILE = "qa_CoT.json"
JSON_OBJECT = re.compile(r"\{.*\}", re.S)


@dataclass(frozen=True)
class EpisodeOptions:
    """How frames become rows.

    ``history`` frames before the one of an answer are shown, every ``every``-th of them counted from it, so that the
    last ones are always there. ``conversation``: one growing conversation an episode instead of a row a frame.
    ``answers`` is "text", as they are, or "json", an object of observation, thought and action alone. ``depth`` adds
    the depth image of the last frame; ``depth_range`` is what it shows, in metres. ``future`` actions follow the next
    one in an answer, and ``frames`` are chosen evenly of a scene that is asked about as a whole.
    """

    history: int = 0
    every: int = 1
    conversation: bool = False
    answers: str = "text"
    depth: bool = False
    depth_range: tuple[float, float] = (0.5, 5.0)
    future: int = 0
    frames: int = 8


def window(number: int, options: EpisodeOptions) -> list[int]:
    """Return the frames shown for frame ``number``, the oldest first: itself, and those of its history."""
    before = [number - step * options.every for step in range(1, options.history + 1)]
    return sorted(frame for frame in before if frame >= 0) + [number]


def evenly(count: int, wanted: int) -> list[int]:
    """Return ``wanted`` of ``count`` frames, the middle ones of equal parts; all where there are no more."""
    if count <= wanted:
        return list(range(count))
    return [int((part + 0.5) * count / wanted) for part in range(wanted)]


def frames_in(folder: Path) -> list[Path]:
    """Return the images of a folder in the order of the numbers in their names."""
    if not folder.is_dir():
        return []
    found = [file for file in folder.iterdir() if file.suffix.lower() in image_suffixes()]
    return sorted(found, key=lambda file: ([int(number) for number in re.findall(r"\d+", file.stem)], file.name))


def ask_about(images: Sequence[str], question: str, answer: str, **fields) -> dict:
    """Return a row with images in front of a question, unless the question says where they go.

    Args:
        images: their paths.
        question: with a mark for each image, or with none.
        answer: what is supervised.
        **fields: what else the row has.
    """
    marked = IMAGE_PLACEHOLDER in question
    text = question if marked else f"{IMAGE_PLACEHOLDER}\n" * len(images) + question
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": answer}]
    return {**fields, "image": images[0] if len(images) == 1 else list(images), "conversations": turns}


def one_answer(text: str, options: EpisodeOptions, where: str) -> str:
    """Return an answer as ``options`` want it.

    Raises:
        RowError: JSON is wanted, and there is none in it, or no action.
    """
    if options.answers == "text":
        return text
    found = JSON_OBJECT.search(text)
    try:
        content = json.loads(found[0]) if found else None
    except ValueError as err:
        raise RowError(where, "answer without JSON", f"has broken JSON in its answer ({err})", "Correct it") from err
    if not isinstance(content, dict) or not isinstance(content.get("action"), str):
        what = f"has the answer {shorten(text, 80)}, in which there is no object with an action"
        raise RowError(where, "answer without JSON", what, "Correct it, or convert with --answers text")
    return json.dumps({key: content[key] for key in ("observation", "thought", "action") if key in content})


def read_episodes(path: Path, root: Path, options: EpisodeOptions) -> Rows:
    """Yield the rows of episode folders: ``images/rgb/0000.png``, ``images/depth/0000.png`` and ``qa_CoT.json``.

    The file holds one object or a list of them, ``{"id", "answer": [{"from": "human", …}, {"from": "gpt-…", …}]}``:
    as many questions as there are frames, a frame each; otherwise a frame is named by the number an ``id`` ends with.

    Args:
        path: an episode, or a folder of them.
        root: what paths of images are written relative to.
        options: how frames become rows.

    Raises:
        UserError: there is no episode.
    """
    folders = sorted({file.parent for file in path.rglob(QA_FILE)}) if path.is_dir() else []
    if not folders:
        raise UserError(f"{path}: holds no {QA_FILE}. Name the folder of an episode, or of several.")
    for folder in folders:
        yield from _episode(folder, root, options)


def _episode(folder: Path, root: Path, options: EpisodeOptions) -> Rows:
    """Yield the rows of one episode; a fault of the whole is one error."""
    where = str(folder / QA_FILE)
    try:
        pairs = _pairs(folder / QA_FILE, frames := frames_in(folder / "images" / "rgb"), where)
    except RowError as err:
        yield where, err
        return
    name = folder.relative_to(root).as_posix() if folder.is_relative_to(root) else folder.name
    names = [_relative(file, root) for file in frames]
    turns: list[dict] = []
    shown: list[str] = []
    for number, question, answer in pairs:
        place = f"{where}:frame {number}"
        try:
            text = one_answer(answer, options, place)
            depth = [_relative(_depth_view(folder, frames[number], options, place), root)] if options.depth else []
        except RowError as err:
            yield place, err
            continue
        if options.conversation:
            marks = f"{IMAGE_PLACEHOLDER}\n" * (1 + len(depth)) + _without_marks(question)
            turns += [{"from": "human", "value": marks}, {"from": "gpt", "value": text}]
            shown += [names[number], *depth]
            continue
        images = [names[frame] for frame in window(number, options)] + depth
        row = ask_about(images, _without_marks(question), text)
        yield place, {"id": f"{name}/{number}", "episode_id": name, "step": number, **row}
    if turns:
        image = shown[0] if len(shown) == 1 else shown
        yield where, {"id": name, "episode_id": name, "image": image, "conversations": turns}


def _pairs(file: Path, frames: list[Path], where: str) -> list[tuple[int, str, str]]:
    """Return (frame, question, answer) of an episode's file.

    Raises:
        RowError: it is of another form, or does not say which frames it is about.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as err:
        raise RowError(where, "not JSON", f"is not JSON ({err})", "Correct the file") from err
    if not frames:
        raise RowError(where, "no frames", "has no images/rgb beside it", "Copy the whole episode")
    pairs: list[tuple[int | None, str, str]] = []
    for entry in content if isinstance(content, list) else [content]:
        answer = entry.get("answer") if isinstance(entry, dict) else None
        said = [turn.get("value") for turn in answer if isinstance(turn, dict)] if isinstance(answer, list) else []
        texts = [text for text in said if isinstance(text, str) and text]
        if not texts or len(texts) % 2 or len(texts) != len(said):
            what = f"holds {shorten(entry, 80)}"
            raise RowError(where, "episode", what, 'Give {"id", "answer": [question, answer, …]} with texts as value')
        number = re.search(r"(\d+)\D*$", str(entry.get("id", "")))
        at_frame = int(number[1]) if number else None
        pairs += [(at_frame, texts[at], texts[at + 1]) for at in range(0, len(texts), 2)]
    if len(pairs) == len(frames):
        return [(number, question, answer) for number, (_, question, answer) in enumerate(pairs)]
    by_stem = {
        int(re.findall(r"\d+", frame.stem)[-1]): at for at, frame in enumerate(frames) if re.search(r"\d", frame.stem)
    }
    if any(number not in by_stem for number, _, _ in pairs):
        what = f"has {len(pairs)} questions about {len(frames)} frames, and ids that name none"
        raise RowError(where, "questions and frames", what, "Give a question a frame, or ids that end in its number")
    return [(by_stem[number], question, answer) for number, question, answer in pairs if number is not None]


def _without_marks(question: str) -> str:
    """Return a question without image marks: which images are shown is the reader's choice."""
    return re.sub(rf"{re.escape(IMAGE_PLACEHOLDER)}\s*", "", question)


def _relative(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else file.as_posix()


def _depth_view(folder: Path, frame: Path, options: EpisodeOptions, where: str) -> Path:
    """Return the depth of a frame as an image to look at, near black and far white; made where it is not there.

    Raises:
        RowError: there is none, or it has other than 16 bits.
    """
    import numpy as np
    from PIL import Image

    low, high = options.depth_range
    source = folder / "images" / "depth" / f"{frame.stem}.png"
    target = folder / "images" / f"depth_{low:g}m_{high:g}m" / source.name
    if target.is_file():
        return target
    if not source.is_file():
        raise RowError(where, "no depth", f"has no {source}", "Copy the depth images, or leave out --depth")
    with Image.open(source) as image:
        if not image.mode.startswith("I"):
            what = f"{source} has the mode {image.mode}, and depth is 16 bits of millimetres"
            raise RowError(where, "depth image", what, "Save depth as 16-bit PNG")
        metres = np.asarray(image, np.float64) / 1000
    shown = np.clip((metres - low) / (high - low), 0, 1)
    target.parent.mkdir(exist_ok=True)
    Image.fromarray((255 * shown).round().astype(np.uint8)).save(target)
    return target


def read_navid(records: Records, root: Path, options: EpisodeOptions) -> Rows:
    """Yield a row of each ``{"video_id", "q", "a", "frames"}``, as NaVid and NaVILA have them.

    Frames are paths, or names in a folder called as the video. Of a history longer than ``options`` want, the last
    frames stay.
    """
    for where, record in records:
        fields = record if isinstance(record, dict) else {}
        frames, question, answer = fields.get("frames"), fields.get("q"), fields.get("a")
        video = str(fields.get("video_id", ""))
        fit = isinstance(frames, list) and frames and all(isinstance(frame, str) for frame in frames)
        if isinstance(record, RowError):
            yield where, record
        elif not fit or not isinstance(question, str) or not isinstance(answer, str):
            what = f"is {shorten(record, 100)}"
            yield where, RowError(where, "navigation step", what, "Give video_id, q, a and a list of frames")
        else:
            assert isinstance(frames, list)
            names = [frame if "/" in frame or not video else f"{video}/{frame}" for frame in frames]
            if options.history:
                names = [names[at] for at in window(len(names) - 1, options)]
            text = question if question.count(IMAGE_PLACEHOLDER) == len(names) else _without_marks(question)
            kept = {key: value for key, value in fields.items() if key not in ("frames", "q", "a", "video_id")}
            yield (
                where,
                ask_about(
                    names, text.replace("<video>\n", "").replace("<video>", ""), answer, episode_id=video, **kept
                ),
            )


def read_streamvln(records: Records, root: Path, options: EpisodeOptions) -> Rows:
    """Yield a row of each step of StreamVLN's ``{"id", "video", "instructions", "actions"}``.

    ``video`` is a folder of frames (in ``rgb/`` below it, where there is one). ``actions`` are Habitat's numbers or
    words, the k-th what is done at the k-th frame; one of -1 in front stands for the start.
    """
    for where, record in records:
        if isinstance(record, RowError):
            yield where, record
            continue
        fields = record if isinstance(record, dict) else {}
        actions, texts, video = fields.get("actions"), fields.get("instructions"), fields.get("video")
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(actions, list) or not isinstance(video, str) or not isinstance(texts, list) or not texts:
            what = f"is {shorten(record, 100)}"
            yield where, RowError(where, "trajectory", what, "Give video, instructions and actions")
            continue
        steps = actions[1:] if actions[:1] == [START] else actions
        words = [ACTIONS.get(step) if isinstance(step, int) else step for step in steps]
        frames = frames_in(root / video / "rgb") or frames_in(root / video)
        if not frames or len(frames) < len(words) or not all(isinstance(word, str) for word in words):
            what = f"has {len(words)} actions ({shorten(steps, 60)}) and {len(frames)} frames in {root / video}"
            yield where, RowError(where, "trajectory", what, "Give a frame and a known action for each step")
            continue
        names = [_relative(file, root) for file in frames]
        for number, text in ((n, t) for t in texts for n in range(len(words))):
            answer = ", ".join(str(word) for word in words[number : number + 1 + options.future])
            images = [names[frame] for frame in window(number, options)]
            yield where, ask_about(images, str(text), answer, episode_id=str(fields.get("id", video)), step=number)


def read_scene_questions(records: Records, root: Path, options: EpisodeOptions) -> Rows:
    """Yield a row of each answer about a scene: OpenEQA's, ScanQA's and SQA3D's forms.

    The scene is a folder of frames below ``root``, called as ``episode_history`` or ``scene_id`` says, of which
    ``options.frames`` are shown.
    """
    known: dict[str, list[str]] = {}
    for where, record in records:
        if isinstance(record, RowError):
            yield where, record
            continue
        fields = record if isinstance(record, dict) else {}
        scene = fields.get("episode_history") or fields.get("scene_id")
        question, answers = fields.get("question"), _answers(fields)
        if not isinstance(scene, str) or not isinstance(question, str) or not answers:
            what = f"is {shorten(record, 100)}"
            todo = "Give question, answer or answers, and episode_history or scene_id"
            yield where, RowError(where, "question about a scene", what, todo)
            continue
        if scene not in known:
            found = frames_in(root / scene)
            known[scene] = [_relative(found[at], root) for at in evenly(len(found), options.frames)]
        if not known[scene]:
            what = f"asks about {scene!r}, and there are no frames in {root / scene}"
            yield where, RowError(where, "no frames", what, "Name the folder of the scenes with --root")
            continue
        if isinstance(fields.get("situation"), str):
            question = f"{fields['situation']} {question}"
        kept = {key: fields[key] for key in ("question_id", "category") if key in fields}
        for answer in answers:
            yield where, ask_about(known[scene], question, answer, scene_id=scene, **kept)


def _answers(fields: dict) -> list[str]:
    """Return the answers of a question: one text, a list of them, or of ``{"answer": …}``."""
    given = fields.get("answers", fields.get("answer"))
    texts = given if isinstance(given, list) else [given]
    found = [text.get("answer") if isinstance(text, dict) else text for text in texts]
    return list(dict.fromkeys(text for text in found if isinstance(text, str) and text.strip()))


RecordReader = Callable[[Records, Path, EpisodeOptions], Rows]
RECORD_READERS: dict[str, RecordReader] = {
    "navid": read_navid,
    "streamvln": read_streamvln,
    "openeqa": read_scene_questions,
    "scanqa": read_scene_questions,
}
