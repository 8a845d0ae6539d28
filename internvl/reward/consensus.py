"""Several answers to a question, and the one among them that the others agree with most."""

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from internvl.inference.engine import Engine
from internvl.inference.requests import Request
from internvl.model.vision_cache import TiledImage
from internvl.reward.answer_sampling import as_answers, make_policy, sample_answers
from internvl.reward.chunk_tokenizer import ChunkTokenizer
from internvl.reward.cider_d import CiderD, Key
from internvl.reward.prompts import Prompt


class SamplingEngine(Engine):
    """An engine that draws ``num_samples`` answers to each question from one reading of its prompt.

    An answer is a JSON list of their texts, so that whatever keeps answers of engines keeps these.
    """

    num_samples = 5
    temperature = 0.5
    seed = 0

    @torch.no_grad()
    def answer(self, requests: Sequence[Request], *, max_new_tokens: int, **generation) -> list[str]:
        """Return a JSON list of texts for each request; beams and the like of ``generation`` say nothing here."""
        policy, end_id = make_policy(self.tokenizer, self.template.end_mark, self.temperature, self.model.device)
        prompts = [self._prompt(request) for request in requests]
        drawn = sample_answers(
            self.model,
            prompts,
            policy,
            num_samples=self.num_samples,
            max_new_tokens=max_new_tokens,
            end_id=end_id,
            pad_id=self.tokenizer.pad_token_id,
            seed=self.seed,
            cache=self.images.cache,
        )
        return [json.dumps(as_answers(*one, self.tokenizer).texts) for one in zip(prompts, drawn, strict=True)]

    def _prompt(self, request: Request) -> Prompt:
        """Return a request for sampling, by whose content, not by whose place in a list, answers are drawn."""
        ids = self.prompt_ids(request.turns(), [len(image) for image in request.images])
        digest = hashlib.sha256(np.array(ids).tobytes())
        for image in request.images:
            digest.update(_content(image))
        key = int.from_bytes(digest.digest()[:6], "big")
        return Prompt(key, torch.tensor(ids), tuple(request.images), (), (), "")


def _content(image: TiledImage) -> bytes:
    if image.key is not None:
        return image.key.encode()
    assert image.tiles is not None, "an image without a key is not kept, so it has its tiles"
    return image.tiles.numpy().tobytes()


def choose_by_consensus(samples: Mapping[Key, Sequence[str]]) -> dict[Key, str]:
    """Return of each question's answers the one with the highest mean CIDEr-D against the others.

    N-grams weigh by how few questions have them among their answers, so what is said of every image counts little.
    Minimum Bayes risk decoding (Kumar and Byrne 2004) with CIDEr-D as the gain.

    Raises:
        UserError: Java, whose tokenizer counts words, is missing.
    """
    tokenizer = ChunkTokenizer()
    tokenizer.learn(text for texts in samples.values() for text in texts)
    words = {key: tokenizer(texts) for key, texts in samples.items()}
    scorer = CiderD(words)
    return {key: texts[int(np.argmax(scorer.agreement(key)))] for key, texts in samples.items()}
