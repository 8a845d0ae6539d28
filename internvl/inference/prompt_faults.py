"""Wrong prompts that servers are often found with: how each one reads a conversation without images."""

from collections.abc import Sequence
from itertools import groupby

from internvl.inference.requests import PromptRules
from internvl.model.internvl_chat.conversation import Turn

ROLES = {"system": "system", "human": "user", "gpt": "assistant"}


def tokens(rules: PromptRules, text: str) -> list[int]:
    return rules.tokenizer(text)["input_ids"]


def published(rules: PromptRules, turns: Sequence[Turn]) -> list[int]:
    """Return the prompt of the chat template in the published checkpoint's tokenizer_config.json."""
    said = "".join(f"<|im_start|>{ROLES[turn.role]}\n{turn.value.strip()}<|im_end|>\n" for turn in turns)
    return tokens(rules, f"{said}<|im_start|>assistant\n")


def rendered(rules: PromptRules, turns: Sequence[Turn], *, sep: str, system: bool = True, opens: bool = True) -> str:
    """Return a prompt that differs from the checkpoint's in one thing.

    Args:
        rules: the checkpoint's template and tokenizer.
        turns: the conversation.
        sep: what ends a turn.
        system: whether the checkpoint's system text is there.
        opens: whether the head of an answer ends it.
    """
    template = rules.template
    own = turns[0].value.strip() if turns[0].role == "system" else template.system_message if system else None
    parts = [] if own is None else [template.system_template.format(system_message=own) + sep]
    for turn in turns[1:] if turns[0].role == "system" else turns:
        prefix = template.user_prefix if turn.role == "human" else template.assistant_prefix
        parts.append(prefix + turn.value.strip() + sep)
    return "".join(parts) + (template.assistant_prefix if opens else "")


def _newline_behind_end(rules: PromptRules, turns: Sequence[Turn]) -> list[int]:
    return tokens(rules, rendered(rules, turns, sep=rules.template.sep + "\n"))


def _no_system_text(rules: PromptRules, turns: Sequence[Turn]) -> list[int]:
    return tokens(rules, rendered(rules, turns, sep=rules.template.sep, system=False))


def _two_starts(rules: PromptRules, turns: Sequence[Turn]) -> list[int]:
    return [rules.tokenizer.bos_token_id, *rules.prompt_ids(turns, [])]


def _no_start(rules: PromptRules, turns: Sequence[Turn]) -> list[int]:
    return rules.prompt_ids(turns, [])[1:]


def _no_open_answer(rules: PromptRules, turns: Sequence[Turn]) -> list[int]:
    return tokens(rules, rendered(rules, turns, sep=rules.template.sep, opens=False))


PROMPT_FAULTS = {
    "the published chat template, with a newline behind <|im_end|> and no system text": published,
    "a newline stands behind the end of each turn": _newline_behind_end,
    "the system text is missing": _no_system_text,
    "it begins with <s> twice": _two_starts,
    "<s> is missing at its beginning": _no_start,
    "the answer is not opened": _no_open_answer,
}


def squeeze(ids: Sequence[int], image_token: int) -> list[int]:
    """Return tokens with each run of image tokens as one."""
    runs = ((token, list(group)) for token, group in groupby(ids))
    return [one for token, group in runs for one in ([token] if token == image_token else group)]
