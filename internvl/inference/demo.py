"""The demo's page: one or two models side by side, images and videos, and the tiles that a model sees."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from internvl.data.image_files import image_suffixes
from internvl.data.video import VIDEO_SUFFIXES
from internvl.errors import UserError
from internvl.inference.chat import MARKS, ChatSession, ChatSettings, LocalTalker, Talker
from internvl.repository import REPOSITORY

logger = logging.getLogger("internvl.demo")
EXAMPLES = REPOSITORY / "data" / "habitat" / "images" / "val"
QUESTIONS = ("Provide a one-sentence caption for the provided image.", "What is in the image?", "What is on the left?")
MAX_TILES = 40
MAX_FILE_SIZE = "100mb"
CSS = ".gradio-container {max-width: 1200px !important} .tiles img {image-rendering: pixelated}"

Messages = list[dict]


@dataclass
class Talk:
    """What a visitor of the page has said so far: a conversation with each model."""

    sessions: list[ChatSession]

    def shown(self, column: int) -> Messages:
        """Return a conversation as the page shows it."""
        session, messages = self.sessions[column], []
        media = iter(session.attachments)
        for turn in session.turns:
            if turn.role == "human":
                marks = len(MARKS.findall(turn.value))
                files = [str(next(media).path) for _ in range(marks)]
                messages += question(MARKS.sub("", turn.value).strip(), files)
            else:
                messages.append({"role": "assistant", "content": turn.value})
        return messages


def question(text: str, files: Sequence[str]) -> Messages:
    """Return a question and its files as the page shows them."""
    shown: Messages = [{"role": "user", "content": {"path": file}} for file in files]
    return [*shown, {"role": "user", "content": text}]


def attach(session: ChatSession, files: Sequence[str]) -> None:
    """Add uploaded files to a conversation.

    Raises:
        UserError: one is not an image or video, or cannot be read; then none is added.
    """
    try:
        for file in files:
            if Path(file).suffix.lower() in VIDEO_SUFFIXES:
                session.attach_video(file)
            else:
                session.attach_images([file])
    except UserError:
        session.waiting = []
        raise


def refusal(message: str, files: Sequence[str] = ()) -> gr.Error:
    """Return what the page shows instead of an answer; uploads are called by their names, not by their place."""
    for file in files:
        message = message.replace(f"{file}: {file}: ", f"{file}: ").replace(file, Path(file).name)
    return gr.Error(message, duration=None, print_exception=False)


def tiles_of(session: ChatSession) -> list[tuple[Image.Image, str]]:
    """Return the tiles of the last question's images with captions, where the model is loaded here."""
    if not isinstance(session.talker, LocalTalker) or not session.turns:
        return []
    asked = [turn for turn in session.turns if turn.role == "human"][-1]
    last = session.attachments[len(session.attachments) - len(MARKS.findall(asked.value)) :]
    shown = []
    for one in last:
        for image in one.images:
            for number, tile in enumerate(image.tiles if image.tiles is not None else (), 1):
                pixels = Image.fromarray(tile.permute(1, 2, 0).numpy())
                shown.append((pixels, f"{one.path.name}: {number} of {len(image)}"))
    return shown


class Page:
    """What the page's buttons do: handlers return the conversations of all columns, and what else they change."""

    def __init__(self, talkers: Sequence[Talker], settings: ChatSettings):
        self.talkers, self.settings = talkers, settings

    def new_talk(self) -> Talk:
        return Talk([ChatSession(talker, self.settings) for talker in self.talkers])

    def respond(
        self, message: dict, talk: Talk | None, tiles: int, temperature: float, new_tokens: int
    ) -> Iterator[tuple]:
        """Yield (text field, conversation, columns …) while the models answer, one after the other.

        Raises:
            gr.Error: there is no question, or a file cannot be read; nothing is asked then.
        """
        text, files = (message.get("text") or "").strip(), message.get("files") or []
        talk = talk or self.new_talk()
        if not text:
            raise refusal("Write a question, too.")
        try:
            for session in talk.sessions:
                session.settings = replace(
                    session.settings, max_tiles=tiles or None, temperature=temperature, max_new_tokens=new_tokens
                )
                attach(session, files)
        except UserError as err:
            self.forget(talk)
            raise refusal(str(err), files) from err
        columns = [talk.shown(number) + question(text, files) for number in range(len(talk.sessions))]
        for number, session in enumerate(talk.sessions):
            asked, pieces = columns[number], []
            try:
                for piece in session.ask(text):
                    pieces.append(piece)
                    columns[number] = [*asked, {"role": "assistant", "content": "".join(pieces)}]
                    yield None, talk, *columns
            except UserError as err:
                self.forget(talk)
                raise refusal(str(err), files) from err
            columns[number] = talk.shown(number)
        yield None, talk, *columns

    @staticmethod
    def forget(talk: Talk) -> None:
        """Forget files of a question that was not answered."""
        for session in talk.sessions:
            session.waiting = []

    def stop(self, talk: Talk | None) -> tuple:
        """Return the columns without an answer that was stopped; the other model's answer to it is taken back, too."""
        if talk is None:
            return (None, *([] for _ in self.talkers))
        self.forget(talk)
        fewest = min(len(session.turns) for session in talk.sessions)
        for session in talk.sessions:
            dropped = [turn for turn in session.turns[fewest:] if turn.role == "human"]
            media = sum(len(MARKS.findall(turn.value)) for turn in dropped)
            session.turns = session.turns[:fewest]
            session.attachments = session.attachments[: len(session.attachments) - media]
        return talk, *(talk.shown(number) for number in range(len(talk.sessions)))

    def clear(self) -> tuple:
        """Return an empty page."""
        return None, None, [], *([] for _ in self.talkers)


def build(talkers: Sequence[tuple[str, Talker]], settings: ChatSettings) -> gr.Blocks:
    """Return the page of one or two models.

    Args:
        talkers: name of each model and what answers for it.
        settings: what answers start with; the page can change them.
    """
    page = Page([talker for _, talker in talkers], settings)
    local = isinstance(talkers[0][1], LocalTalker)
    with gr.Blocks(title="InternVL-Chat", analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        talk = gr.State(None)
        with gr.Row():
            columns = [
                gr.Chatbot(
                    label=name, height=420, min_width=320, buttons=["copy"], elem_id=f"answers-{number}",
                    render_markdown=False, allow_tags=True, feedback_options=None, layout="bubble",
                )
                for number, (name, _) in enumerate(talkers, 1)
            ]  # fmt: skip
        field = gr.MultimodalTextbox(
            file_count="multiple", file_types=["image", *sorted(VIDEO_SUFFIXES)], sources=["upload"], show_label=False,
            placeholder="A question, with images or a video", elem_id="question",
        )  # fmt: skip
        with gr.Row():
            stop, clear = gr.Button("Stop", size="sm"), gr.Button("Clear", size="sm")
        with gr.Accordion("How answers are made", open=False):
            tiles = gr.Slider(
                0, MAX_TILES, settings.max_tiles or 0, step=1, label="Most tiles of an image (0: the model's own)",
                visible=local,
            )  # fmt: skip
            temperature = gr.Slider(0, 2, settings.temperature, step=0.05, label="Temperature (0: greedy)")
            new_tokens = gr.Slider(1, 2048, settings.max_new_tokens, step=1, label="Longest answer in tokens")
        with gr.Accordion("Tiles of the last question, as the model sees them", open=False, visible=local):
            seen = gr.Gallery(
                columns=4, height=320, object_fit="contain", show_label=False, elem_classes="tiles", format="png"
            )
        files = sorted(file for file in EXAMPLES.glob("*") if file.suffix in image_suffixes())[: len(QUESTIONS)]
        if files:
            examples = [[{"text": text, "files": [str(file)]}] for text, file in zip(QUESTIONS, files, strict=True)]
            gr.Examples(examples, field, cache_examples=False)
        settings_of_answers = [tiles, temperature, new_tokens]
        # One at a time: a model answers one question, and another one's would change its adapter meanwhile.
        answering = field.submit(
            page.respond, [field, talk, *settings_of_answers], [field, talk, *columns], concurrency_limit=1
        )
        answering.success(lambda now: tiles_of(now.sessions[0]), talk, seen, api_visibility="private")
        # First an end to the answer, then what it leaves: pieces that are on their way would come after the clearing.
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        stop.click(None, cancels=[answering], **private).then(page.stop, talk, [talk, *columns], **private)
        for button in (clear.click, *(column.clear for column in columns)):
            button(None, cancels=[answering], **private).then(
                page.clear, None, [field, talk, seen, *columns], **private
            )
    return blocks


def serve(page: gr.Blocks, host: str, port: int) -> None:
    """Serve the page until the process is interrupted.

    Raises:
        UserError: the port is taken.
    """
    try:
        page.launch(
            server_name=host,
            server_port=port,
            ssr_mode=False,
            show_error=True,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=MAX_FILE_SIZE,
            allowed_paths=[str(EXAMPLES)],
            enable_monitoring=False,
            footer_links=[],
            css=CSS,
            theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        )
    except OSError as err:
        raise UserError(f"--port: {port} cannot be listened at ({err}). Give another one.") from err
    logger.info("The page is at http://%s:%d. Ctrl-C ends it.", "127.0.0.1" if host == "0.0.0.0" else host, port)
    page.block_thread()
