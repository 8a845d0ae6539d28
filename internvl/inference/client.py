"""A client of a server that speaks OpenAI's chat protocol, such as vLLM or ``transformers serve``."""

import base64
import io
import ipaddress
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from PIL import Image

from internvl.data.media import read_image
from internvl.errors import UserError, shorten
from internvl.model.internvl_chat.conversation import IMAGE_PLACEHOLDER, Turn
from internvl.model.internvl_chat.image_processing_internvl_chat import read_orientation

# An answer may wait behind all others that the server works on.
TIMEOUT_SECONDS = 900
MIME_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png"}
# vLLM's own variable: what its --api-key is set from.
API_KEY = "VLLM_API_KEY"


class ServerError(UserError):
    """A server refused a request; ``status`` is HTTP's, ``reason`` what the server said."""

    def __init__(self, message: str, status: int, reason: str):
        super().__init__(message)
        self.status, self.reason = status, reason


@dataclass(frozen=True)
class Reply:
    """An answer of a server.

    ``finish`` is stop or length. Where the server tells them: ``prompt_ids`` and ``answer_ids``, the tokens (vLLM),
    and ``scores``, the log-probability of each token of the answer.
    """

    text: str
    finish: str
    prompt_tokens: int
    completion_tokens: int
    prompt_ids: list[int] | None = None
    answer_ids: list[int] | None = None
    scores: list[float] | None = None


class ServerClient:
    """Talks to the server at ``url``, with or without ``/v1`` at its end.

    Raises:
        UserError: ``url`` is not the address of a server.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/").removesuffix("/v1")
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"{url}: is not the address of a server. Give it like http://127.0.0.1:8000.")
        # A proxy for the way out does not know this machine's own addresses.
        handlers = [urllib.request.ProxyHandler({})] if _is_this_machine(parts.hostname) else []
        self._opener = urllib.request.build_opener(*handlers)

    @contextmanager
    def _opened(self, path: str, body: dict | None, timeout: float) -> Iterator[HTTPResponse]:
        """Yield the server's answer, open; arguments and errors as of :meth:`call`."""
        headers = {"Content-Type": "application/json"}
        if os.environ.get(API_KEY):
            headers["Authorization"] = f"Bearer {os.environ[API_KEY]}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with self._opener.open(request, timeout=timeout) as stream:
                yield stream
        except urllib.error.HTTPError as err:
            reason = _reason_of(err.read())
            raise ServerError(
                f"{self.url}{path}: the server refused with status {err.code} ({reason}). Look into the server's log.",
                err.code,
                reason,
            ) from err
        except (OSError, HTTPException) as err:
            cause = getattr(err, "reason", None) or err
            raise UserError(
                f"{self.url}: no server answers there ({cause}). Start it, or correct the address."
            ) from err

    def call(self, path: str, body: dict | None = None, *, timeout: float = TIMEOUT_SECONDS) -> dict:
        """Return the server's JSON answer to a GET, or with ``body`` to a POST.

        Raises:
            ServerError: the server refused.
            UserError: it cannot be reached, or does not answer in JSON.
        """
        with self._opened(path, body, timeout) as stream:
            content = stream.read()
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise UserError(
                f"{self.url}{path}: answers {shorten(content)}, which is not what an OpenAI-style server answers. "
                "Correct the address."
            )
        return answer

    def models(self) -> list[str]:
        """Return the names of the models that the server serves."""
        listed = self.call("/v1/models", timeout=30).get("data")
        names = [entry.get("id") for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
        return [name for name in names if isinstance(name, str)]

    def choose_model(self, name: str | None, flag: str) -> str:
        """Return ``name`` if the server serves it, or without a name its only model; ``flag`` is for messages.

        Raises:
            UserError: the server has no such model, or several to choose from.
        """
        try:
            served = self.models()
        except ServerError:
            if name is None:
                raise
            return name  # without a hub cache, transformers serve cannot list what it serves
        if name is None and len(served) == 1:
            return served[0]
        if name is None:
            raise UserError(f"{self.url}: serves {', '.join(served) or 'no model'}. Name one with {flag}.")
        # transformers serve loads models by name when they are asked for, and lists those of its cache.
        if name not in served and not Path(name).is_dir():
            raise UserError(
                f"{flag}: is {name!r}, and {self.url} serves {', '.join(served) or 'no model'}. Give one of these."
            )
        return name

    def chat(self, model: str, messages: Sequence[dict], **settings) -> Reply:
        """Return the answer of ``model`` to a conversation; ``settings`` are further fields of the request.

        Raises:
            ServerError: the server refused.
            UserError: the server cannot be reached, or its answer lacks a part.
        """
        answer = self.call("/v1/chat/completions", {"model": model, "messages": list(messages), **settings})
        try:
            choice, usage = answer["choices"][0], answer["usage"]
            scores = (choice.get("logprobs") or {}).get("content")
            return Reply(
                text=choice["message"]["content"] or "",
                finish=choice["finish_reason"],
                prompt_tokens=int(usage["prompt_tokens"]),
                completion_tokens=int(usage["completion_tokens"]),
                prompt_ids=answer.get("prompt_token_ids"),
                answer_ids=choice.get("token_ids"),
                scores=[float(entry["logprob"]) for entry in scores] if scores else None,
            )
        except (LookupError, TypeError, ValueError, AttributeError) as err:
            raise UserError(
                f"{self.url}: answers {shorten(answer)}, which lacks choices or usage. Use a server that follows "
                "OpenAI's chat protocol."
            ) from err

    def stream(self, model: str, messages: Sequence[dict], **settings) -> Iterator[str]:
        """Yield the answer of ``model`` in pieces, as the server sends them (server-sent events); else as ``chat``.

        Raises:
            ServerError: the server refused.
            UserError: it cannot be reached, or sends something else.
        """
        body = {"model": model, "messages": list(messages), "stream": True, **settings}
        with self._opened("/v1/chat/completions", body, TIMEOUT_SECONDS) as stream:
            for line in stream:
                field, _, content = line.decode("utf-8", "replace").strip().partition(":")
                if field != "data" or content.strip() == "[DONE]":
                    continue
                try:
                    choices = json.loads(content)["choices"]
                    text = choices[0]["delta"].get("content") if choices else None
                except (LookupError, TypeError, ValueError, AttributeError) as err:
                    raise UserError(
                        f"{self.url}: sends {shorten(content)}, which is no piece of an answer. Use a server that "
                        "follows OpenAI's chat protocol."
                    ) from err
                if text:
                    yield text


def _is_this_machine(host: str) -> bool:
    """Return whether a host name or address is a loopback one."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _reason_of(content: bytes) -> str:
    """Return what a server says about a refusal, on one line."""
    try:
        answer = json.loads(content)
        error = answer.get("error", answer)
        text = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        text = content.decode("utf-8", "replace")
    return " ".join(str(text).split())[:500]


def data_url(image: str | Path | Image.Image, where: str) -> str:
    """Return an image as a data URL whose pixels every server decodes to those that are read here.

    A plain JPEG or PNG file goes as it is. What servers read in different ways (a camera's orientation, transparency,
    palettes, 16 bits, other formats) goes as an upright RGB PNG.

    Raises:
        UserError: the file is missing or not an image.
    """
    if not isinstance(image, Image.Image):
        path = Path(image)
        image = read_image(path, where)  # says what is wrong with a damaged file
        with Image.open(path) as opened:
            kind = opened.format
            plain = opened.mode == "RGB" and read_orientation(opened) == 1 and "transparency" not in opened.info
        if plain and kind in MIME_TYPES:
            return encode(path.read_bytes(), MIME_TYPES[kind])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return encode(buffer.getvalue(), MIME_TYPES["PNG"])


def encode(content: bytes, mime_type: str) -> str:
    return f"data:{mime_type};base64,{base64.b64encode(content).decode()}"


def chat_messages(turns: Sequence[Turn], images: Sequence[str]) -> list[dict]:
    """Return a conversation as OpenAI's messages; ``images`` are the data URLs of each ``<image>``, in order.

    A chat template writes a line break behind each image, as the training rows have it.

    Raises:
        UserError: a ``<image>`` has other text right behind it, which no message can say.
    """
    urls = iter(images)
    roles = {"system": "system", "human": "user", "gpt": "assistant"}
    messages: list[dict] = []
    for turn in turns:
        value = turn.value.strip()
        if turn.role != "human" or IMAGE_PLACEHOLDER not in value:
            messages.append({"role": roles[turn.role], "content": value})
            continue
        head, *rest = value.split(IMAGE_PLACEHOLDER)
        parts: list[dict] = [{"type": "text", "text": head}] if head else []
        for number, text in enumerate(rest, 1):
            if not text.startswith("\n") and not (number == len(rest) and not text):
                raise UserError(
                    f"{shorten(value)}: a server's chat template writes a line break behind each image, and here "
                    f"{shorten(text[:20])} follows. Put a line break there, or evaluate without a server."
                )
            parts.append({"type": "image_url", "image_url": {"url": next(urls)}})
            if text.removeprefix("\n"):
                parts.append({"type": "text", "text": text.removeprefix("\n")})
        messages.append({"role": "user", "content": parts})
    return messages
