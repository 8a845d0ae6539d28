"""What an evaluation asks: conversations up to an open answer, with their images or their video."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from internvl.data.media import choose_clip, read_image_size, read_info, read_video
from internvl.data.problems import RowError, raise_first
from internvl.data.tokenize import count_text_tokens
from internvl.data.video import VideoInfo, choose_frames, place_frames
from internvl.inference.requests import AnsweringEngine, PromptTiles, Request
from internvl.model.internvl_chat.conversation import Turn


@dataclass(frozen=True)
class Question:
    """One thing the model is asked; the answers of people to it are the references.

    ``turns`` end with the human turn to answer. ``images`` are the images of its ``<image>`` marks in order;
    ``video`` that of its ``<video>``, of which ``clip`` (start, end in seconds) is used. ``max_tiles`` is the data
    set's own limit on tiles. ``where`` is file and line for messages.
    """

    id: int | str
    turns: tuple[Turn, ...]
    where: str
    images: tuple[Path, ...] = ()
    video: Path | None = None
    clip: tuple[float, float] | None = None
    max_tiles: int | None = None

    def media(self) -> dict[str, str | list[str]]:
        """Return its images or video as an annotation row names them: ``image`` or ``video``."""
        if self.video:
            return {"video": str(self.video)}
        names = [str(path) for path in self.images]
        return {"image": names[0] if len(names) == 1 else names} if names else {}


def _middle_frames(question: Question, info: VideoInfo, num_frames: int) -> list[int]:
    """Return the frames of a question's video: the middle ones of ``num_frames`` equal parts of it or of its clip."""
    start, length = choose_clip(question.clip, info, question.video or "", question.where)
    return [start + index for index in choose_frames(num_frames, length, sample="middle")]


def check_media(questions: Sequence[Question]) -> dict[Path, tuple[int, int]]:
    """Look at every image's header and every video's; returns the images' (width, height) in px.

    Raises:
        UserError: some are missing or unreadable; names the first few with their place.
    """
    sizes: dict[Path, tuple[int, int]] = {}
    seen: set[Path] = set()
    problems = []
    for question in questions:
        for path in (*question.images, *([question.video] if question.video else [])):
            if path in seen:
                continue
            seen.add(path)
            try:
                if path == question.video:
                    read_info(path, question.where)
                else:
                    sizes[path] = read_image_size(path, question.where)
            except RowError as err:
                problems.append(str(err))
    raise_first(problems)
    return sizes


def count_tokens(
    rules: PromptTiles, questions: Sequence[Question], sizes: dict[Path, tuple[int, int]], num_frames: int
) -> list[int]:
    """Return the length of each question's prompt in tokens.

    Args:
        rules: the checkpoint's template, tokenizer and tiles.
        questions: what is asked.
        sizes: (width, height) in px of each image.
        num_frames: of a video.
    """
    texts, tiles = [], []
    for question in questions:
        turns, limit = list(question.turns), rules.tiling.limit(len(question.images), question.max_tiles)
        frames = 0
        if question.video:
            frames = len(_middle_frames(question, read_info(question.video, question.where), num_frames))
        texts.append(place_frames(turns, frames))
        tiles.append(frames + sum(rules.tiling.num_tiles(sizes[path], limit) for path in question.images))
    lengths = count_text_tokens(texts, tokenizer=rules.tokenizer, template=rules.template)
    return [text + count * rules.config.num_image_token for text, count in zip(lengths, tiles, strict=True)]


def read_request(engine: AnsweringEngine, question: Question, num_frames: int) -> Request:
    """Read a question's images or frames and cut them into tiles, as the engine takes them.

    Raises:
        RowError: one of them cannot be read.
    """
    turns = list(question.turns)
    if question.video:
        frames = read_video(question.video, lambda info: _middle_frames(question, info, num_frames), question.where)
        return Request([engine.read(frame, 1) for frame in frames], place_frames(turns, len(frames)))
    limit = engine.tiling.limit(len(question.images), question.max_tiles)
    return Request([engine.read(path, limit, question.where) for path in question.images], turns)
