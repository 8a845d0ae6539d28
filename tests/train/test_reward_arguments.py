"""Flags of a training on the score: what cannot be is refused by name."""

import pytest

from internvl.errors import UserError
from internvl.train.reward_arguments import parse_reward_arguments

LEAST = [
    "--model_name_or_path", "m", "--meta_path", "m", "--output_dir", "o", "--lora_dropout", "0", "--use_cpu", "True",
    "--freeze_llm", "True", "--use_llm_lora", "8",
]  # fmt: skip


def test_defaults_are_leave_one_out_cider_d_of_five_answers():
    *_, reward = parse_reward_arguments(LEAST)
    assert (reward.num_samples, reward.advantage, reward.kl, reward.ce_mix) == (5, "leave-one-out", 0, 0)
    assert [(spec.name, spec.weight) for spec in reward.specs()] == [("CIDEr-D", 1.0)]


def test_preferences_draw_nothing_and_take_a_beta():
    *_, reward = parse_reward_arguments([*LEAST, "--objective", "mpo", "--beta", "0.5"])
    assert reward.has_preferences and reward.beta == 0.5


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--num_samples", "1"], "--num_samples: is 1. Give at least 2"),
        (["--sample_temperature", "0"], "--sample_temperature: is 0"),
        (["--sample_max_new_tokens", "0"], "--sample_max_new_tokens: is 0"),
        (["--advantage", "best"], "--advantage: is 'best'. Give leave-one-out or standardized"),
        (["--kl", "-1"], "--kl: is -1"),
        (["--ce_mix", "nan"], "--ce_mix: is nan"),
        (["--ce_mix", "0.1", "--sample_temperature", "0.7"], "Pass --sample_temperature 1.0"),
        (["--lora_dropout", "0.05"], "--lora_dropout: is 0.05. Answers are drawn and judged without"),
        (["--drop_path_rate", "0.1"], "--drop_path_rate: is 0.1"),
        (["--reward", "BLEU"], "--reward: 'BLEU' is not a reward. Give one of CIDEr-D"),
        (["--objective", "ppo"], "--objective: is 'ppo'. Give reward, dpo or mpo"),
        (["--objective", "dpo", "--beta", "0"], "--beta: is 0.0. Give a number above 0"),
        (["--beta", "0.2"], "--beta: has no effect with --objective reward. Remove it"),
        (["--objective", "dpo", "--num_samples", "4"], "--num_samples: has no effect with --objective dpo"),
        (["--objective", "mpo", "--kl", "0.1"], "--kl: has no effect with --objective mpo"),
        (["--top_p", "0.9"], "there is no flag --top_p"),
    ],
)
def test_what_cannot_be_is_refused(flags, words):
    with pytest.raises(UserError, match=words):
        parse_reward_arguments([*LEAST, *flags])
