"""The parser of training flags: help in groups, errors in the project's form, and flags that have been renamed."""

import argparse
import difflib
from collections.abc import Iterable, Sequence
from dataclasses import fields

from transformers import HfArgumentParser

from internvl.errors import UserError

# What the original's users type → what transformers 5 calls it. A ratio below 1 is what v5's warmup_steps takes.
RENAMED_FLAGS = {"--evaluation_strategy": "--eval_strategy", "--warmup_ratio": "--warmup_steps"}
# Of transformers' flags, those that people set.
OFTEN_SET = (
    "output_dir", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
    "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "optim", "seed", "bf16",
    "fp16", "use_cpu", "deepspeed", "fsdp", "save_strategy", "save_steps", "save_total_limit", "eval_strategy",
    "eval_steps", "metric_for_best_model", "load_best_model_at_end", "logging_steps", "report_to",
    "dataloader_num_workers",
)  # fmt: skip


class FlagParser(HfArgumentParser):
    """Refuses abbreviations in the project's error form; help lists the flags of each group under its title.

    ``groups`` are dataclasses; the first line of one's docstring is its title. What a dataclass has from another
    library comes in two groups of its own, at the end: what is often set, and the rest.
    """

    def __init__(self, groups: Sequence[type], *, prog: str, description: str):
        super().__init__(
            groups,
            prog=prog,
            usage="%(prog)s --flag VALUE …",
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        left = {action.dest for action in self._actions} - {"help"}
        titles: list[tuple[str, Iterable[str]]] = [
            ((group.__doc__ or "").splitlines()[0].rstrip("."), _own_fields(group)) for group in groups
        ]
        foreign = [name for group in groups for name in _inherited_fields(group)]
        if foreign:
            titles.append(("Of transformers' TrainingArguments, what is often set", OFTEN_SET))
            titles.append(("Of transformers' TrainingArguments, all others", foreign))
        for title, names in titles:
            chosen = [name for name in names if name in left]
            if not chosen:
                continue
            section = self.add_argument_group(title)
            for name in chosen:
                left.discard(name)
                # Those of --x and of --no_x.
                section._group_actions += [action for action in self._actions if action.dest == name]
        moved = {id(action) for group in self._action_groups[2:] for action in group._group_actions}
        for group in self._action_groups[:2]:  # argparse's "positional arguments" and "options"
            group._group_actions = [action for action in group._group_actions if id(action) not in moved]

    def error(self, message: str):
        raise UserError(f"command line: {message}. See --help for the flags.")

    def parse(self, argv: Sequence[str]) -> tuple:
        """Return the groups of a command line; values are not checked against each other yet.

        Raises:
            UserError: a flag is unknown (the nearest known one is named), or a value does not fit.
        """
        argv = [_rename_flag(argument) for argument in argv]
        known = [option for action in self._actions for option in action.option_strings]
        for argument in argv:
            flag = argument.split("=", 1)[0]
            if flag.startswith("--") and flag not in known:
                near = difflib.get_close_matches(flag, known, n=1)
                hint = f"Did you mean {near[0]}?" if near else "See --help for the flags."
                raise UserError(f"command line: there is no flag {flag}. {hint}")
        try:
            return self.parse_args_into_dataclasses(argv)
        except (ValueError, ImportError) as err:
            # transformers checks values against each other and says what is wrong in the message.
            raise err if isinstance(err, UserError) else UserError(f"command line: {err}") from err


def _own_fields(group: type) -> list[str]:
    """Return the fields that a dataclass of this project declares itself."""
    return [one.name for one in fields(group) if one.name in group.__annotations__]


def _inherited_fields(group: type) -> Iterable[str]:
    return (one.name for one in fields(group) if one.name not in group.__annotations__)


def _rename_flag(argument: str) -> str:
    """Return a flag under its transformers 5 name; other arguments unchanged."""
    flag, equals, value = argument.partition("=")
    return RENAMED_FLAGS.get(flag, flag) + equals + value
