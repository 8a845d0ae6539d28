"""An engine whose answers come from a server: the same prompts, tiles and settings as the local one, checked."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from transformers import PreTrainedTokenizerFast

from internvl.data.media import read_image_size
from internvl.errors import UserError
from internvl.inference.client import Reply, ServerClient, ServerError, chat_messages, data_url
from internvl.inference.requests import PromptRules, Request
from internvl.model.internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl.model.internvl_chat.image_processing_internvl_chat import expand_to_square, open_image

# What the least and the most tiles of an image are called in vLLM: by the published layout, by transformers' own.
LIMIT_NAMES = (("min_dynamic_patch", "max_dynamic_patch"), ("min_patches", "max_patches"))


@dataclass(frozen=True)
class SentImage:
    """An image on its way to a server: its data URL, its number of tiles, and the most it may have."""

    url: str
    num_tiles: int
    max_tiles: int

    def __len__(self) -> int:
        """Return the number of tiles."""
        return self.num_tiles


class ServerEngine(PromptRules):
    """Answers batches of requests through a server that has the checkpoint loaded; all of a batch at once.

    Every answer's prompt is counted: a server that cuts images otherwise, or renders another prompt, is noticed at
    its first answer. ``config`` and ``tokenizer`` are the checkpoint's, ``model`` its name at the server, ``seed``
    that of sampling.
    """

    def __init__(
        self,
        client: ServerClient,
        model: str,
        config: InternVLChatConfig,
        tokenizer: PreTrainedTokenizerFast,
        *,
        max_tiles: int = 1,
        seed: int = 0,
    ):
        super().__init__(config, tokenizer, max_tiles=max_tiles)
        self.client, self.model, self.seed = client, model, seed
        self._sends_tile_limit, self._limit_names = False, list(LIMIT_NAMES)

    def read(
        self, image: str | Path | Image.Image, max_tiles: int | None = None, where: str | None = None
    ) -> SentImage:
        """Return an image as :meth:`answer` takes it; arguments and errors as of ``Engine.read``."""
        limit = max_tiles or self.tiling.limit(1)
        if self.tiling.pads_to_square:
            try:
                image = expand_to_square(open_image(image))
            except (FileNotFoundError, ValueError) as err:
                raise UserError(str(err)) from err
        url = data_url(image, where or str(image))
        size = image.size if isinstance(image, Image.Image) else read_image_size(Path(image), where or str(image))
        return SentImage(url, self.tiling.num_tiles(size, limit), limit)

    def answer(self, requests: Sequence[Request], **generation) -> list[str]:
        """Answer a batch; ``generation`` holds transformers' settings: max_new_tokens, min_new_tokens, temperature.

        Raises:
            UserError: the server refuses, cannot be reached, or answers another prompt than the checkpoint's.
        """
        if generation.get("num_beams", 1) > 1:
            raise UserError(
                f"--num-beams: is {generation['num_beams']}, and a server searches with one. Remove the flag, or "
                "evaluate without a server."
            )
        with ThreadPoolExecutor(max(1, len(requests))) as pool:
            return list(pool.map(lambda request: self.answer_one(request, generation), requests))

    def answer_one(self, request: Request, generation: dict) -> str:
        """Answer one request; errors as of :meth:`answer`."""
        end_mark = self.template.end_mark
        settings = {
            "max_tokens": generation["max_new_tokens"],
            "min_tokens": generation.get("min_new_tokens") or 0,
            "temperature": generation.get("temperature", 1.0) if generation.get("do_sample") else 0.0,
            "seed": self.seed,
            # As the local engine: an answer ends at the template's end mark, whatever the server's files say.
            "stop_token_ids": [self.tokenizer.convert_tokens_to_ids(end_mark)],
            "ignore_eos": True,
        }
        expected = len(self.prompt_ids(request.turns(), [len(image) for image in request.images]))
        reply = self.ask(request, settings, expected)
        if reply.finish == "stop" and reply.completion_tokens < settings["min_tokens"]:
            raise UserError(
                f"{self.client.url}: an answer has {reply.completion_tokens} tokens, and {settings['min_tokens']} "
                "were asked for (min_tokens). Use vLLM, or pass --min-new-tokens 1."
            )
        return reply.text.split(end_mark)[0].strip()

    def ask(self, request: Request, settings: dict, expected: int) -> Reply:
        """Return the reply to one request, whose prompt has the ``expected`` number of tokens.

        A server cuts images into as many tiles as its files say. Where that is another limit, the request's own is
        sent along, which vLLM obeys if it was started with ``--trust-request-mm-kwargs``. Errors as of :meth:`answer`.
        """
        messages = chat_messages(request.turns(), [image.url for image in request.images])
        reply = None
        if not self._sends_tile_limit or not request.images:
            reply = self.client.chat(self.model, messages, **settings)
            whole_tiles = (reply.prompt_tokens - expected) % self.config.num_image_token == 0
            if reply.prompt_tokens == expected or not request.images or not whole_tiles:
                return self.checked(reply, expected)
        limit = request.images[0].max_tiles
        least = min(self.config.min_dynamic_patch, limit)
        reason = "its answer is the same with one"
        for names in list(self._limit_names):
            kwargs = dict(zip(names, (least, limit), strict=True))
            try:
                reply = self.client.chat(self.model, messages, **settings, mm_processor_kwargs=kwargs)
            except ServerError as err:
                if err.status >= 500:
                    raise
                reason = err.reason
                continue
            if reply.prompt_tokens == expected:
                self._sends_tile_limit, self._limit_names = True, [names]
                return reply
        read = f"read a prompt of {reply.prompt_tokens} tokens" if reply else "read another prompt"
        raise UserError(
            f"{self.client.url}: {self.model} {read}, and the checkpoint's has {expected} with {limit} tiles a "
            f"image at most; it takes no other limit ({reason}). Start vLLM with --trust-request-mm-kwargs, pass "
            "--max-num with the limit of the server's checkpoint, or run tools/check_serving.py for what differs."
        )

    def checked(self, reply: Reply, expected: int) -> Reply:
        """Return a reply whose prompt has the ``expected`` number of tokens.

        Raises:
            UserError: it has another.
        """
        if reply.prompt_tokens != expected:
            raise UserError(
                f"{self.client.url}: {self.model} read a prompt of {reply.prompt_tokens} tokens, and the checkpoint's "
                f"has {expected}: the chat template is another one. Look what differs: run tools/check_serving.py."
            )
        return reply
