"""Whether a server answers as a checkpoint does: the same prompt, the same images, the same weights.

A handful of questions are asked at the server and answered here in float32. What differs gets a name by trying what
usually goes wrong: the published chat template, another limit of tiles, the base without its adapter.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import zip_longest

import torch

from internvl.inference.client import Reply, ServerClient, ServerError, chat_messages, data_url
from internvl.inference.engine import Engine
from internvl.inference.prompt_faults import PROMPT_FAULTS, squeeze
from internvl.inference.serving_probes import STRIP, Probe, make_probes
from internvl.model.internvl_chat.conversation import IMG_CONTEXT_TOKEN
from internvl.model.vision_cache import image_features

MAX_NEW_TOKENS = 24
# Log-probabilities of the same weights differ by rounding. How much in bfloat16 is measured here, on the same
# answers; another kernel rounds in another order, hence the factor.
ROUNDING_FACTOR = 4.0
FLOAT32_ROUNDING = 2e-4
# Extra fields that vLLM answers; other servers are asked again without what they do not know.
EXTRAS = ({"logprobs": True, "return_token_ids": True}, {"logprobs": True}, {})


@dataclass(frozen=True)
class Asked:
    """A probe and what the server replied; ``expected`` are the checkpoint's own prompt tokens."""

    probe: Probe
    reply: Reply
    expected: list[int]

    def same_prompt(self) -> bool:
        """Return whether the server read the checkpoint's prompt, as far as it tells."""
        if self.reply.prompt_ids is not None:
            return self.reply.prompt_ids == self.expected
        return self.reply.prompt_tokens == len(self.expected)


class ServingCheck:
    """Compares a server with an engine that has the checkpoint loaded in float32, tiles as in its training.

    ``findings`` are sentences that say what differs; ``summary`` what is equal. ``hypotheses`` load further engines
    that a server with other weights is compared with, by what to call them.
    """

    def __init__(
        self,
        client: ServerClient,
        model: str,
        engine: Engine,
        *,
        hypotheses: dict[str, Callable[[], Engine]] | None = None,
    ):
        self.client, self.model, self.engine = client, model, engine
        self.hypotheses = hypotheses or {}
        self.findings: list[str] = []
        self.summary = ""
        self._extras = list(EXTRAS)
        self._rounded: Engine | None = None
        self._image_token = engine.tokenizer.convert_tokens_to_ids(IMG_CONTEXT_TOKEN)

    def run(self) -> list[str]:
        """Ask, compare, and return the findings."""
        asked = self.ask_all(make_probes(self.engine.config.image_size))
        self.compare_prompts(asked)
        self.compare_tiles(asked)
        judged = [one for one in asked if one.probe.judges_weights and one.same_prompt()]
        if judged:
            self.compare_answers(judged)
        elif not self.findings:
            self.findings.append("no prompt is the checkpoint's, so its weights could not be judged")
        return self.findings

    # ---- asking -----------------------------------------------------------------------------------------------------

    def ask_all(self, probes: Sequence[Probe]) -> list[Asked]:
        """Ask all questions; images that the server refuses become a finding."""
        asked = []
        for probe in probes:
            try:
                asked.append(self.ask(probe))
            except ServerError as err:
                if not probe.images:
                    raise
                self.findings.append(f"{probe.name} is refused with status {err.status} ({err.reason})")
                if not any(one.probe.images for one in asked):
                    self.findings[-1] = (
                        f"images are refused with status {err.status} ({err.reason}): the server does not serve "
                        "this model with its vision encoder"
                    )
                    break
        return asked

    def ask(self, probe: Probe) -> Asked:
        """Ask one question, with as many extras as the server knows."""
        messages = chat_messages(probe.turns, [data_url(image, probe.name) for image in probe.images])
        settings = {"max_tokens": MAX_NEW_TOKENS if probe.judges_weights else 1, "temperature": 0}
        while True:
            try:
                reply = self.client.chat(self.model, messages, **settings, **self._extras[0])
                break
            except ServerError as err:
                if err.status not in (400, 422) or len(self._extras) == 1 or probe.images:
                    raise
                self._extras.pop(0)
        num_tiles = [self.engine.tiling.num_tiles(image.size) for image in probe.images]
        expected = self.engine.prompt_ids(probe.turns, num_tiles)
        if reply.prompt_ids is None and not probe.images:
            reply = Reply(**{**vars(reply), "prompt_ids": self.tokenize(messages)})
        return Asked(probe, reply, expected)

    def tokenize(self, messages: list[dict]) -> list[int] | None:
        """Return the tokens of a text-only prompt where the server has ``/tokenize`` (vLLM), else None."""
        try:
            return self.client.call("/tokenize", {"model": self.model, "messages": messages}).get("tokens")
        except ServerError:
            return None

    # ---- prompts and images ---------------------------------------------------------------------------------------

    def compare_prompts(self, asked: Sequence[Asked]) -> None:
        """Find out whether the chat template is another one, and which."""
        texts = [one for one in asked if not one.probe.images]
        if all(one.same_prompt() for one in texts):
            return
        first = next(one for one in texts if not one.same_prompt())
        known = next((name for name, fault in PROMPT_FAULTS.items() if self.explains(fault, texts)), None)
        where = self.first_difference(first) if first.reply.prompt_ids else (
            f"{first.probe.name} has {first.reply.prompt_tokens} tokens instead of {len(first.expected)}"
        )  # fmt: skip
        self.findings.append(
            f"the prompt is another one: {known or 'an unknown chat template'} ({where}). Serve the checkpoint's own "
            "chat_template.jinja (vllm serve --chat-template FILE)"
        )

    def explains(self, fault: Callable, texts: Sequence[Asked]) -> bool:
        """Return whether a fault gives just the prompts that the server read."""
        for one in texts:
            ids = fault(self.engine, one.probe.turns)
            if one.reply.prompt_ids is not None and ids != one.reply.prompt_ids:
                return False
            if len(ids) != one.reply.prompt_tokens:
                return False
        return True

    def first_difference(self, one: Asked) -> str:
        """Return which token is the first to differ, in words."""
        tokens = self.engine.tokenizer.convert_ids_to_tokens
        for index, (got, wanted) in enumerate(zip_longest(one.reply.prompt_ids or [], one.expected)):
            if got != wanted:
                shown = [tokens(value) if value is not None else "the end" for value in (got, wanted)]
                return f"token {index} of {one.probe.name} is {shown[0]!r} instead of {shown[1]!r}"
        return "no token differs"

    def compare_tiles(self, asked: Sequence[Asked]) -> None:
        """Find out whether images are cut into other tiles, and with which limit."""
        for one in asked:
            if not one.probe.images or one.same_prompt():
                continue
            own = sum(self.engine.tiling.num_tiles(image.size) for image in one.probe.images)
            ids, expected = one.reply.prompt_ids, one.expected
            if ids is not None and squeeze(ids, self._image_token) != squeeze(expected, self._image_token):
                if not self.findings:
                    self.findings.append(f"the prompt around images is another one ({self.first_difference(one)})")
                continue
            served = self.count_served(one, own)
            if self.findings and served is None:
                continue  # another template accounts for it
            if served == 0:
                self.findings.append(f"{one.probe.name} does not reach the model: the prompt has no image tokens")
            elif served is None:
                self.findings.append(
                    f"{one.probe.name}: the prompt has {one.reply.prompt_tokens} tokens instead of {len(expected)}"
                )
            else:
                self.findings.append(self.name_tiles(one, own, served))
            return  # the strip comes first, and says most

    def count_served(self, one: Asked, own: int) -> int | None:
        """Return how many tiles the server cut a probe's images into; None if its tokens are no whole tiles."""
        size = self.engine.config.num_image_token
        if one.reply.prompt_ids is not None:
            extra = one.reply.prompt_ids.count(self._image_token) - own * size
        else:
            extra = one.reply.prompt_tokens - len(one.expected)
        return own + extra // size if extra % size == 0 and own + extra // size >= 0 else None

    def name_tiles(self, one: Asked, own: int, served: int) -> str:
        """Return the sentence about another tiling."""
        thumbnail = int(self.engine.config.use_thumbnail)
        if served == own - thumbnail and own > 1:
            what = "without a thumbnail"
        elif one.probe.name == STRIP:
            limit = served - thumbnail if served > 1 else 1
            what = f"with a limit of {limit} tiles instead of {self.engine.tiling.max_num}"
        else:
            what = "otherwise"
        return (
            f"images are cut {what} ({one.probe.name} into {served} tiles instead of {own}). Serve the files that "
            "the training or the merge wrote (config.json, preprocessor_config.json), or start vLLM with "
            f"--hf-overrides '{{\"max_dynamic_patch\": {self.engine.tiling.max_num}}}'"
        )

    # ---- weights ----------------------------------------------------------------------------------------------------

    def compare_answers(self, judged: Sequence[Asked]) -> None:
        """Find out whether the weights are the checkpoint's, those of a hypothesis, or others."""
        own = [self.engine_answer(self.engine, one) for one in judged]
        runs_on = sum(text != one.reply.text.strip() and one.reply.text.strip().startswith(text) and bool(text)
                      for text, one in zip(own, judged, strict=True))  # fmt: skip
        equal = sum(text == one.reply.text.strip() for text, one in zip(own, judged, strict=True))
        worst = max(self.distance(self.engine, one) for one in judged)
        if equal == len(judged) and all(one.reply.scores is None for one in judged):
            self.summary = f"{equal} answers are equal"
        elif self.has_weights_of(self.engine, judged):
            what = "the same weights" if worst <= FLOAT32_ROUNDING else "the same within bf16"
            self.summary = f"{equal} of {len(judged)} answers are equal, log-probabilities within {worst:.1g}: {what}"
            if runs_on:
                self.findings.append(self.stop_sentence(runs_on))
        elif runs_on and runs_on + equal == len(judged):
            self.findings.append(self.stop_sentence(runs_on))
        else:
            self.findings.append(self.name_weights(judged, worst, equal))

    def stop_sentence(self, number: int) -> str:
        mark = self.engine.template.end_mark
        return (
            f"{number} answers go on behind their end: the server does not stop at {mark}. Set eos_token_id in its "
            "generation_config.json as the checkpoint has it"
        )

    def name_weights(self, judged: Sequence[Asked], worst: float, equal: int) -> str:
        """Return the sentence about other weights."""
        for name, load in self.hypotheses.items():
            engine = load()
            if self.has_weights_of(engine, judged):
                return f"the weights are others: those of {name}. Ask for the model that has the adapter, or merge it"
        return (
            f"the weights are others ({equal} of {len(judged)} answers are equal, log-probabilities differ by up to "
            f"{worst:.2g}), as after a merge of an earlier training. Merge again, and restart the server on the new "
            "folder"
        )

    def has_weights_of(self, engine: Engine, judged: Sequence[Asked]) -> bool:
        """Return whether the server's answers are an engine's, up to rounding."""
        return all(
            (one.reply.scores is None and self.engine_answer(engine, one) == one.reply.text.strip())
            or (distance := self.distance(engine, one)) <= FLOAT32_ROUNDING
            or distance <= self.rounding(one)
            for one in judged
        )

    @torch.no_grad()
    def engine_answer(self, engine: Engine, one: Asked) -> str:
        """Return an engine's greedy answer to a probe."""
        images = [engine.read(image) for image in one.probe.images]
        prompt = engine.model.render_prompt(list(one.probe.turns), [len(image) for image in images])
        features = image_features(engine.model, images)
        settings = {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False}
        return engine.model.answer_prompts(engine.tokenizer, None, [prompt], settings, visual_features=features)[0]

    @torch.no_grad()
    def log_probs(self, engine: Engine, one: Asked) -> tuple[torch.Tensor, list[int]]:
        """Return an engine's log-probabilities (answer tokens, vocabulary) along the server's answer, and its ids."""
        prompt = self.engine.prompt_ids(
            one.probe.turns, [self.engine.tiling.num_tiles(image.size) for image in one.probe.images]
        )
        answer = self.answer_ids(one)
        ids = torch.tensor([prompt + answer], device=engine.model.device)
        features = image_features(engine.model, [engine.read(image) for image in one.probe.images])
        logits = engine.model.language_model(inputs_embeds=engine.model.embed(ids, features)).logits[0]
        return logits[len(prompt) - 1 : -1].float().log_softmax(-1).cpu(), answer

    def answer_ids(self, one: Asked) -> list[int]:
        """Return the tokens of the server's answer, as it tells them, or of its text."""
        if one.reply.answer_ids:
            return one.reply.answer_ids
        tokenizer, template = self.engine.tokenizer, self.engine.template
        whole, before = (
            tokenizer(template.assistant_prefix + text, add_special_tokens=False)["input_ids"]
            for text in (one.reply.text, "")
        )
        ended = one.reply.finish == "stop" or len(whole) == len(before)
        return whole[len(before) :] + ([tokenizer.convert_tokens_to_ids(template.end_mark)] if ended else [])

    def distance(self, engine: Engine, one: Asked) -> float:
        """Return how far the server is from an engine, in log-probability (nats).

        Where the server tells the log-probabilities of its tokens: the mean difference. Where it does not: how much
        less likely its tokens are than the engine's most likely ones, at most.
        """
        table, answer = self.log_probs(engine, one)
        own = table[torch.arange(len(answer)), torch.tensor(answer)]
        if one.reply.scores and len(one.reply.scores) == len(answer):
            told = torch.tensor(one.reply.scores)
            return float((own - told).abs().mean())
        return float((table.max(-1).values - own).max())

    def rounding(self, one: Asked) -> float:
        """Return the distance that bfloat16 explains, measured on the same answer."""
        if self._rounded is None:
            model = deepcopy(self.engine.model).bfloat16()
            self._rounded = Engine(model, self.engine.tokenizer, max_tiles=self.engine.tiling.max_num)
        exact, answer = self.log_probs(self.engine, one)
        rounded, _ = self.log_probs(self._rounded, one)
        rows = torch.arange(len(answer)), torch.tensor(answer)
        noise = (exact[rows] - rounded[rows]).abs()
        return FLOAT32_ROUNDING + ROUNDING_FACTOR * float(noise.mean() if one.reply.scores else noise.max())
