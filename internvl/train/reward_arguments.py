"""The flags of a training on the score or on preferences, beside those of a finetune."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from internvl.errors import UserError
from internvl.reward.objective import ADVANTAGES
from internvl.reward.preference import OBJECTIVES
from internvl.reward.rewards import RewardSpec
from internvl.train.arguments import (
    ARGUMENT_GROUPS,
    DataArguments,
    FinetuneArguments,
    ModelArguments,
    check_arguments,
    parse_groups,
)
from internvl.train.sharding import shards_parameters


@dataclass
class RewardArguments:
    """What is sampled, what it is worth, and what the policy is kept near to."""

    objective: str = field(
        default="reward",
        metadata={
            "help": "What is trained on: the reward of answers that are drawn (reward), or rows with a chosen and a "
            "rejected answer (dpo, or mpo: DPO, BCO and supervised loss as 0.8, 0.2 and 1)."
        },
    )
    beta: float = field(
        default=0.1,
        metadata={"help": "Of dpo and mpo: what a nat counts; small lets the model go far from its start."},
    )
    reward: list[str] = field(
        default_factory=lambda: ["CIDEr-D:1.0"],
        metadata={
            "help": "What an answer is worth, as NAME:WEIGHT, several of them added up: CIDEr-D, BLEU-4, exact, "
            "json-valid, what --match of an evaluation takes (choice, number, json:FIELD, regex:PATTERN), or a "
            "function of yours, FILE.py:FUNCTION:WEIGHT."
        },
    )
    num_samples: int = field(default=5, metadata={"help": "Answers that are drawn about each image."})
    sample_temperature: float = field(default=1.0, metadata={"help": "What logits are divided by when drawing."})
    sample_max_new_tokens: int = field(default=30, metadata={"help": "Longest answer; a longer one has no end."})
    advantage: str = field(
        default="leave-one-out",
        metadata={
            "help": "What a reward is compared with: the image's other answers (leave-one-out), or standardized."
        },
    )
    kl: float = field(
        default=0.0, metadata={"help": "What each nat of divergence from the start takes off an answer's reward."}
    )
    ce_mix: float = field(default=0.0, metadata={"help": "Weight of the supervised loss of the references."})

    @property
    def has_preferences(self) -> bool:
        """Whether rows bring the two answers, and none is drawn."""
        return self.objective in OBJECTIVES

    def specs(self) -> list[RewardSpec]:
        """Return the rewards that are named.

        Raises:
            UserError: one of them is none.
        """
        return [RewardSpec.parse(text) for text in self.reward]


def parse_reward_arguments(
    argv: Sequence[str],
) -> tuple[ModelArguments, DataArguments, FinetuneArguments, RewardArguments]:
    """Parse the command line of a training on the score.

    Raises:
        UserError: as ``parse_arguments`` of a finetune, and where values do not fit together.
    """
    model, data, training, reward = parse_groups((*ARGUMENT_GROUPS, RewardArguments), argv)
    check_arguments(model, data, training)
    _check(model, data, training, reward)
    return model, data, training, reward


def _check(model: ModelArguments, data: DataArguments, training: FinetuneArguments, reward: RewardArguments) -> None:
    """Check what the parser cannot.

    Raises:
        UserError: names the flag, its value and what to do.
    """
    if reward.objective not in ("reward", *OBJECTIVES):
        raise UserError(f"--objective: is {reward.objective!r}. Give reward, {' or '.join(OBJECTIVES)}.")
    if not 0 < reward.beta < float("inf"):
        raise UserError(f"--beta: is {reward.beta}. Give a number above 0, such as 0.1.")
    _refuse_flags_of_other_objectives(reward)
    reward.specs()
    if training.auto_micro_batch:
        raise UserError(
            "--auto_micro_batch: looking at answers before the step takes memory that no plan knows. Name "
            "PER_DEVICE_BATCH_SIZE."
        )
    if reward.num_samples < 2:
        raise UserError(
            f"--num_samples: is {reward.num_samples}. Give at least 2: answers are compared with each other."
        )
    if not 0 < reward.sample_temperature <= 10:
        raise UserError(f"--sample_temperature: is {reward.sample_temperature}. Give a number above 0, such as 1.0.")
    if reward.sample_max_new_tokens < 1:
        raise UserError(f"--sample_max_new_tokens: is {reward.sample_max_new_tokens}. Give a number of tokens.")
    if reward.advantage not in ADVANTAGES:
        raise UserError(f"--advantage: is {reward.advantage!r}. Give {' or '.join(ADVANTAGES)}.")
    for name in ("kl", "ce_mix"):
        if not 0 <= getattr(reward, name) < float("inf"):
            raise UserError(f"--{name}: is {getattr(reward, name)}. Give a number from 0.")
    if reward.ce_mix and reward.sample_temperature != 1:
        raise UserError(
            f"--ce_mix: the supervised loss is of the temperature 1, and --sample_temperature is "
            f"{reward.sample_temperature}. Pass --sample_temperature 1.0, or --ce_mix 0."
        )
    if model.lora_dropout:
        raise UserError(
            f"--lora_dropout: is {model.lora_dropout}. Answers are drawn and judged without dropout, and the gradient "
            "has to be of the same model. Pass --lora_dropout 0.0."
        )
    if model.drop_path_rate:
        raise UserError(
            f"--drop_path_rate: is {model.drop_path_rate}. Pass --drop_path_rate 0.0, as for --lora_dropout."
        )
    if shards_parameters(training):
        raise UserError(
            "--deepspeed: with ZeRO-3 and FSDP no process has the weights to draw or judge answers with. Use ZeRO-1 "
            "or -2, or DEEPSPEED=none."
        )


def _refuse_flags_of_other_objectives(reward: RewardArguments) -> None:
    """Refuse what would have no effect.

    Raises:
        UserError: names the flag.
    """
    default = RewardArguments()
    changed = [one.name for one in fields(reward) if getattr(reward, one.name) != getattr(default, one.name)]
    unused = [name for name in changed if name != "objective" and (name != "beta") == reward.has_preferences]
    if unused:
        raise UserError(f"--{unused[0]}: has no effect with --objective {reward.objective}. Remove it.")
