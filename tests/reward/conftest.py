"""A tiny model with LoRA, and prompts about the rows that can share."""

import pytest
import torch

from internvl.data.sampling import SampleGroup
from internvl.reward.answer_sampling import Policy
from internvl.reward.prompts import PromptDataset
from tests.train.conftest import captions, model_and_data  # noqa: F401 - fixtures

MEMBERS = ("internlm2", "qwen3")


@pytest.fixture
def make_policy(model_and_data):  # noqa: F811
    """``make_policy(member)`` → (model, tokenizer, prompts, policy, id of the end mark)."""

    def make(member="internlm2", temperature=1.0):
        model, tokenizer, data = model_and_data(member=member)
        prompts = PromptDataset(data)
        read = [prompts[SampleGroup((key,), 0)] for key in range(len(prompts))]
        end_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
        suppressed = torch.tensor([tokenizer.convert_tokens_to_ids(name) for name in ("<IMG_CONTEXT>", "<img>")])
        return model, tokenizer, read, Policy(temperature, suppressed), end_id

    return make
