"""A conversation about images and videos that goes on: its turns and media, and answers that come piece by piece."""

import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from internvl.data.media import read_video
from internvl.data.video import NUM_FRAMES, choose_frames, place_frames
from internvl.errors import UserError
from internvl.inference.client import ServerClient, chat_messages, data_url
from internvl.inference.engine import Engine
from internvl.inference.requests import Request
from internvl.json_files import encode_line
from internvl.model.adapter_switch import AdapterSwitch
from internvl.model.internvl_chat.conversation import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER, Turn

MARKS = re.compile(f"({re.escape(IMAGE_PLACEHOLDER)}|{re.escape(VIDEO_PLACEHOLDER)})")


@dataclass(frozen=True)
class ChatSettings:
    """How answers are made. A ``temperature`` of 0 takes the likeliest token each time."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    max_tiles: int | None = None  # of an image; None for the model's own
    num_frames: int = NUM_FRAMES


class Talker(Protocol):
    """What answers a conversation: a model that is loaded here, or a server."""

    def read(self, image: Any, max_tiles: int | None) -> Any:
        """Return an image, a path or a PIL image, as :meth:`stream` takes it."""

    def stream(self, turns: Sequence[Turn], images: Sequence[Any], settings: ChatSettings) -> Iterator[str]:
        """Yield the answer to the last of ``turns`` in pieces; ``images`` are those of each ``<image>``, in order."""


class StopOnEvent(StoppingCriteria):
    """Ends generating after the token at which an event is set."""

    def __init__(self, event: threading.Event):
        self.event = event

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs) -> torch.Tensor:
        """Return for each row whether it ends, bool (B,)."""
        return torch.full(input_ids.shape[:1], self.event.is_set(), device=input_ids.device)


class LocalTalker:
    """Answers with a model that is loaded in this process."""

    def __init__(self, engine: Engine):
        self.engine = engine

    def read(self, image: Any, max_tiles: int | None) -> Any:
        """Return the tiles of an image."""
        return self.engine.read(image, max_tiles)

    def stream(self, turns: Sequence[Turn], images: Sequence[Any], settings: ChatSettings) -> Iterator[str]:
        """Yield the answer in pieces, while a thread generates it; whoever closes the iterator ends that, too.

        Raises:
            UserError: the conversation does not fit into memory.
        """
        streamer = TextIteratorStreamer(self.engine.tokenizer, skip_special_tokens=True)
        sampling = {"do_sample": True, "temperature": settings.temperature} if settings.temperature > 0 else {}
        stopped = threading.Event()
        options = {
            "do_sample": False,
            "max_new_tokens": settings.max_new_tokens,
            **sampling,
            "streamer": streamer,
            "stopping_criteria": StoppingCriteriaList([StopOnEvent(stopped)]),
        }
        failures: list[BaseException] = []

        def generate() -> None:
            try:
                self.engine.answer([Request(images, turns)], **options)
            except BaseException as err:  # raised again below, in the thread that reads
                failures.append(err)
                streamer.end()

        thread = threading.Thread(target=generate, name="generate", daemon=True)
        thread.start()
        try:
            yield from streamer
        finally:
            stopped.set()
            thread.join()
        if failures:
            raise failures[0]


class WithoutAdapter(LocalTalker):
    """Answers with the base of a model whose adapter ``switch`` takes away meanwhile."""

    def __init__(self, engine: Engine, switch: AdapterSwitch):
        super().__init__(engine)
        self.switch = switch

    def stream(self, turns: Sequence[Turn], images: Sequence[Any], settings: ChatSettings) -> Iterator[str]:
        """Yield the answer in pieces; nobody may ask the model with its adapter before the last one."""
        with self.switch.off():
            yield from super().stream(turns, images, settings)


class ServerTalker:
    """Answers through a server of OpenAI's chat protocol, which cuts images by its own settings."""

    def __init__(self, client: ServerClient, model: str):
        self.client, self.model = client, model

    def read(self, image: Any, max_tiles: int | None) -> Any:
        """Return an image as a data URL."""
        return data_url(image, str(image))

    def stream(self, turns: Sequence[Turn], images: Sequence[Any], settings: ChatSettings) -> Iterator[str]:
        """Yield the answer in pieces, as the server sends them."""
        yield from self.client.stream(
            self.model,
            chat_messages(turns, images),
            max_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
        )


@dataclass
class Attachment:
    """An image or a video of a conversation: its file, and its images as the talker takes them."""

    path: Path
    images: list[Any]
    is_video: bool


@dataclass
class ChatSession:
    """A conversation with a model.

    ``waiting`` are the images and videos that the next question is about; ``attachments`` those of all turns so far,
    in order.
    """

    talker: Talker
    settings: ChatSettings = field(default_factory=ChatSettings)
    system: str | None = None
    turns: list[Turn] = field(default_factory=list)
    attachments: list[Attachment] = field(default_factory=list)
    waiting: list[Attachment] = field(default_factory=list)

    def attach_images(self, paths: Sequence[str | Path]) -> None:
        """Add images to the next question.

        Raises:
            UserError: one is missing or not an image; then none is added.
        """
        files = [Path(path).expanduser() for path in paths]
        read = [Attachment(file, [self.talker.read(file, self.settings.max_tiles)], False) for file in files]
        self.waiting += read

    def attach_video(self, path: str | Path) -> None:
        """Add the frames of a video, or of a folder of frames, to the next question.

        Raises:
            UserError: it cannot be read.
        """
        file = Path(path).expanduser()

        def choose(info) -> list[int]:
            return choose_frames(self.settings.num_frames, len(info.times), sample="middle")

        frames = [self.talker.read(frame, 1) for frame in read_video(file, choose, str(file))]
        self.waiting.append(Attachment(file, frames, True))

    def ask(self, text: str) -> Iterator[str]:
        """Yield the answer to a question in pieces; the conversation has both once the last one is read.

        A question that says where its images are (``<image>``, ``<video>``) is taken as it is, else they go in front.

        Raises:
            UserError: it marks another number of images or videos than were added.
        """
        turn = Turn("human", self._with_marks(text))
        turns, media = [*self.turns, turn], [*self.attachments, *self.waiting]
        pieces = []
        for piece in self.talker.stream(*self._prompt(turns, media), self.settings):
            pieces.append(piece)
            yield piece
        self.turns, self.attachments, self.waiting = [*turns, Turn("gpt", "".join(pieces).strip())], media, []

    def _with_marks(self, text: str) -> str:
        marks = {False: IMAGE_PLACEHOLDER, True: VIDEO_PLACEHOLDER}
        found = {is_video: text.count(mark) for is_video, mark in marks.items()}
        wanted = {kind: sum(one.is_video is kind for one in self.waiting) for kind in marks}
        if any(found.values()):
            if found != wanted:
                raise UserError(
                    f"the question marks {found[False]} images and {found[True]} videos, and {wanted[False]} and "
                    f"{wanted[True]} were added to it. Make the numbers equal, or leave the marks out."
                )
            return text
        return "".join(f"{marks[one.is_video]}\n" for one in self.waiting) + text

    def _prompt(self, turns: Sequence[Turn], media: Sequence[Attachment]) -> tuple[list[Turn], list[Any]]:
        """Return the turns as the model reads them, a video as its frames, and the images in the order of marks."""
        left = {
            mark: iter([one for one in media if one.is_video is is_video])
            for mark, is_video in ((IMAGE_PLACEHOLDER, False), (VIDEO_PLACEHOLDER, True))
        }
        placed, images = [Turn("system", self.system)] if self.system else [], []
        for turn in turns:
            parts = []
            for part in MARKS.split(turn.value) if turn.role == "human" else [turn.value]:
                if part in left:
                    one = next(left[part])
                    images += one.images
                    part = place_frames([Turn("human", part)], len(one.images))[0].value
                parts.append(part)
            placed.append(turn._replace(value="".join(parts)))
        return placed, images

    def retry(self) -> Iterator[str]:
        """Answer the last question once more; the answer before is forgotten.

        Raises:
            UserError: nothing has been asked yet.
        """
        if not self.turns:
            raise UserError("/retry: nothing has been asked yet. Ask something first.")
        return self._ask_again()

    def _ask_again(self) -> Iterator[str]:
        *self.turns, question, _ = self.turns
        start = len(self.attachments) - len(MARKS.findall(question.value))
        later, self.waiting = self.waiting, self.attachments[start:]
        self.attachments = self.attachments[:start]
        try:
            yield from self.ask(question.value)
        finally:
            self.waiting += later  # of the question after it

    def clear(self) -> None:
        """Forget the conversation and its images; the system message stays."""
        self.turns, self.attachments, self.waiting = [], [], []

    def save(self, path: str | Path) -> None:
        """Add the conversation to a JSONL file, as a row that can be trained on.

        Raises:
            UserError: there is no conversation, it has images and videos, or several videos, which no row may have, or
                the file cannot be written.
        """
        if not self.turns:
            raise UserError("/save: nothing has been asked yet. Ask something first.")
        videos = [str(one.path.resolve()) for one in self.attachments if one.is_video]
        images = [str(one.path.resolve()) for one in self.attachments if not one.is_video]
        if len(videos) > 1 or (videos and images):
            raise UserError("/save: a row has images or one video, and this conversation more. It is not saved.")
        media: dict[str, str | list[str]] = {}
        if videos:
            media["video"] = videos[0]
        elif images:
            media["image"] = images[0] if len(images) == 1 else images
        turns = [Turn("system", self.system)] if self.system else []
        conversation = [{"from": turn.role, "value": turn.value} for turn in [*turns, *self.turns]]
        try:
            with open(Path(path).expanduser(), "ab") as stream:
                stream.write(encode_line({**media, "conversations": conversation}))
        except OSError as err:
            raise UserError(f"{path}: cannot be written ({err.strerror}). Name another file.") from err
