"""An OpenAI-style server in this process that answers through the project's own engine: a stand-in for vLLM."""

import base64
import io
import json
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread

import jinja2
import torch
from PIL import Image

from internvl.inference.engine import Engine
from internvl.model.chat_template import chat_template
from internvl.model.internvl_chat.conversation import IMAGE_PLACEHOLDER, get_conv_template
from internvl.model.internvl_chat.image_processing_internvl_chat import open_image
from internvl.model.vision_cache import image_features

# In tokenizer_config.json of the published InternVL2-2B.
PUBLISHED_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


PORT = 0  # any that is free


class RefusedError(Exception):
    """A request is answered with ``status`` and the reason."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


@dataclass
class FakeServer:
    """What is served, and how.

    ``engines`` by model name, each with its limit of tiles as ``max_tiles``; ``template`` in Jinja, None for the
    checkpoint's; ``tells``: whether it knows token ids and log-probabilities, as vLLM does; ``trusts_kwargs``:
    whether a request may bring its own limit of tiles; ``sees``: whether it takes images; ``breaks_after``: it
    refuses from this request on; ``has_min_tokens``: whether it obeys min_tokens.
    """

    engines: dict[str, Engine]
    template: str | None = None
    tells: bool = True
    trusts_kwargs: bool = False
    sees: bool = True
    has_min_tokens: bool = True
    breaks_after: int | None = None
    requests: list[dict] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)

    def get(self, path: str) -> dict:
        if path == "/v1/models":
            return {"object": "list", "data": [{"id": name, "owned_by": "fake"} for name in self.engines]}
        raise RefusedError(404, "Not Found")

    def post(self, path: str, body: dict) -> dict:
        with self.lock:  # one model, one thread
            if path == "/tokenize" and self.tells:
                return {"tokens": self.prompt(self.engines[body["model"]], body["messages"], [])}
            if path != "/v1/chat/completions":
                raise RefusedError(404, "Not Found")
            self.requests.append(body)
            if self.breaks_after is not None and len(self.requests) > self.breaks_after:
                raise RefusedError(500, "the engine has died")
            return self.chat(body)

    def chat(self, body: dict) -> dict:
        engine = self.engines[body["model"]]
        if not self.tells and (body.get("logprobs") or body.get("return_token_ids")):
            raise RefusedError(422, "unexpected fields: logprobs, return_token_ids")
        limit = None
        if "mm_processor_kwargs" in body:
            if not self.trusts_kwargs:
                raise RefusedError(400, "mm_processor_kwargs are disabled. Start with --trust-request-mm-kwargs.")
            limit = body["mm_processor_kwargs"]["max_dynamic_patch"]
        parts = [part for message in body["messages"] for part in message["content"] if isinstance(part, dict)]
        images = [decode(part["image_url"]["url"]) for part in parts if part["type"] == "image_url"]
        if images and not self.sees:
            raise RefusedError(400, "At most 0 image(s) may be provided in one prompt.")
        images = [engine.read(image, limit) for image in images]
        prompt = self.prompt(engine, body["messages"], [len(image) for image in images])
        answer, scores = generate(engine, prompt, images, body, has_min_tokens=self.has_min_tokens)
        ended = answer[-1] == end_mark(engine)
        choice = {
            "message": {"role": "assistant", "content": engine.tokenizer.decode(answer, skip_special_tokens=True)},
            "finish_reason": "stop" if ended else "length",
        }
        reply = {"usage": {"prompt_tokens": len(prompt), "completion_tokens": len(answer)}, "choices": [choice]}
        if body.get("logprobs"):
            content = [{"token": str(token), "logprob": score} for token, score in zip(answer, scores, strict=True)]
            choice["logprobs"] = {"content": content}
        if body.get("return_token_ids"):
            choice["token_ids"], reply["prompt_token_ids"] = answer, prompt
        return reply

    def prompt(self, engine: Engine, messages: list[dict], num_tiles: list[int]) -> list[int]:
        """The tokens of a conversation, rendered by the Jinja template as servers render it."""
        template = self.template or chat_template(get_conv_template(engine.config.template))
        if self.template:  # of the time before parts: what a server makes of images there
            messages = [{**message, "content": flat(message["content"])} for message in messages]
        rendered = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(template)
        text = rendered.render(messages=messages, add_generation_prompt=True, bos_token="")
        head, *rest = text.split(IMAGE_PLACEHOLDER)
        runs = [f"<img>{'<IMG_CONTEXT>' * (count * engine.config.num_image_token)}</img>" for count in num_tiles]
        return engine.tokenizer(head + "".join(run + part for run, part in zip(runs, rest, strict=True)))["input_ids"]


def flat(content: str | list[dict]) -> str:
    if isinstance(content, str):
        return content
    return "".join(part["text"] if part["type"] == "text" else f"{IMAGE_PLACEHOLDER}\n" for part in content)


def end_mark(engine: Engine) -> int:
    return engine.tokenizer.convert_tokens_to_ids(engine.template.sep.strip())


def decode(url: str) -> Image.Image:
    return open_image(io.BytesIO(base64.b64decode(url.partition("base64,")[2])))


@torch.no_grad()
def generate(engine, prompt, images, body, *, has_min_tokens) -> tuple[list[int], list[float]]:
    """Greedy tokens and their log-probabilities, one after the other, with the end mark."""
    model, ids, answer, scores = engine.model, list(prompt), [], []
    features = image_features(model, images)
    while len(answer) < body["max_tokens"] and (not answer or answer[-1] != end_mark(engine)):
        embedded = model.embed(torch.tensor([ids]), features)
        row = model.language_model(inputs_embeds=embedded).logits[0, -1].float().log_softmax(-1)
        allowed = row.clone()
        if has_min_tokens and len(answer) < body.get("min_tokens", 0):
            allowed[end_mark(engine)] = -torch.inf
        answer.append(int(allowed.argmax()))
        scores.append(float(row[answer[-1]]))
        ids.append(answer[-1])
    return answer, scores


def server_sent_events(text: str, size: int = 3):
    """An answer in pieces, as servers stream it."""
    yield b": comment\n\n"
    for start in range(0, len(text), size):
        choice = {"index": 0, "delta": {"content": text[start : start + size]}, "finish_reason": None}
        yield f"data: {json.dumps({'choices': [choice]})}\n\n".encode()
    yield b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'
    yield b'data: {"choices": [], "usage": {}}\n\ndata: [DONE]\n\n'


@contextmanager
def running(server: FakeServer):
    """Yield the address of a server that runs in threads."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.reply(lambda: server.get(self.path))

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.reply(lambda: server.post(self.path, body))

        def reply(self, make):
            try:
                status, answer = 200, make()
            except RefusedError as err:
                status, answer = err.status, {"error": {"message": str(err), "code": err.status}}
            if status == 200 and "choices" in answer and server.requests[-1].get("stream"):
                content = b"".join(server_sent_events(answer["choices"][0]["message"]["content"]))
            else:
                content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", PORT), Handler)
    Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_port}"
    finally:
        http.shutdown()
        http.server_close()
