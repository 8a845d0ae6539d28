"""Conversation templates and special tokens, and the one prompt builder: turns → text segments.

Training, chat, evaluation and the processor all render through :func:`render_turns`, so that what a model is asked is
byte for byte what it was trained on.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

IMG_START_TOKEN = "<img>"
IMG_END_TOKEN = "</img>"
IMG_CONTEXT_TOKEN = "<IMG_CONTEXT>"
IMAGE_PLACEHOLDER = "<image>"
VIDEO_PLACEHOLDER = "<video>"

# In the order of the published vocabulary: the first nine follow the sentencepiece pieces (ids 92544 to 92552).
ADDED_SPECIAL_TOKENS = [
    IMG_START_TOKEN,
    IMG_END_TOKEN,
    IMG_CONTEXT_TOKEN,
    "<quad>",
    "</quad>",
    "<ref>",
    "</ref>",
    "<box>",
    "</box>",
]
# These take the place of the last sentencepiece pieces (ids 92538 to 92543), which were left unused for them.
RENAMED_SPECIAL_TOKENS = [
    "<|plugin|>",
    "<|interpreter|>",
    "<|action_end|>",
    "<|action_start|>",
    "<|im_end|>",
    "<|im_start|>",
]


class Turn(NamedTuple):
    """One message: ``role`` is system, human or gpt; ``value`` its text."""

    role: str
    value: str


class Segment(NamedTuple):
    """A piece of the rendered prompt; ``is_target`` marks what the model is trained to answer."""

    text: str
    is_target: bool


@dataclass(frozen=True)
class ConversationTemplate:
    """How turns become text: each is wrapped as ``<role prefix><value><sep>``.

    ``system_template`` holds ``{system_message}``; ``sep`` ends every turn, the system's too, and is what the model
    says when it is done. An empty question has none, unless ``ends_empty_question``: each published model as trained.
    """

    name: str
    system_template: str
    system_message: str
    user_prefix: str
    assistant_prefix: str
    sep: str
    ends_empty_question: bool = False

    @property
    def end_mark(self) -> str:
        """The token that an answer ends with: ``sep`` without the newline that some have behind it."""
        return self.sep.rstrip("\n")


_INTERNLM2_SYSTEM = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
_INTERNVL2_5_SYSTEM = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
_INTERNLM2_CHAT = ConversationTemplate(
    name="internlm2-chat",
    system_template="<|im_start|>system\n{system_message}",
    system_message=_INTERNLM2_SYSTEM,
    user_prefix="<|im_start|>user\n",
    assistant_prefix="<|im_start|>assistant\n",
    sep="<|im_end|>",
)

TEMPLATES = {
    template.name: template
    for template in (
        _INTERNLM2_CHAT,
        replace(_INTERNLM2_CHAT, name="Hermes-2"),
        replace(
            _INTERNLM2_CHAT,
            name="internvl2_5",
            system_message=_INTERNVL2_5_SYSTEM,
            sep="<|im_end|>\n",
            ends_empty_question=True,
        ),
        replace(
            _INTERNLM2_CHAT,
            name="phi3-chat",
            system_template="<|system|>\n{system_message}",
            user_prefix="<|user|>\n",
            assistant_prefix="<|assistant|>\n",
            sep="<|end|>",
        ),
    )
}


def get_conv_template(name: str) -> ConversationTemplate:
    """Return the template called ``name``.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in TEMPLATES:
        raise ValueError(f"There is no conversation template {name!r}. Use one of: {', '.join(TEMPLATES)}.")
    return TEMPLATES[name]


def render_turns(
    template: ConversationTemplate,
    turns: list[Turn],
    *,
    system_message: str | None = None,
    add_generation_prompt: bool = False,
) -> list[Segment]:
    """Render turns into segments whose texts, joined, are the prompt (without the tokenizer's leading ``<s>``).

    Values are stripped, as the published training did. The target of a gpt turn is its answer and the end mark; a
    newline behind the end mark belongs to the prompt.

    Args:
        template: the model's.
        turns: an optional system turn, which replaces the system message, then human and gpt in turn.
        system_message: instead of the template's own.
        add_generation_prompt: end with the open answer's head.

    Example: ``[Turn("human", "Hi"), Turn("gpt", "Hello")]`` gives, for internlm2-chat, ``<|im_start|>system\\n…``,
    ``<|im_start|>user\\nHi<|im_end|>``, ``<|im_start|>assistant\\n`` and the target ``Hello<|im_end|>``.
    """
    if system_message is None:
        system_message = template.system_message
    if turns and turns[0].role == "system":
        system_message, turns = turns[0].value.strip(), turns[1:]
    after_end = template.sep[len(template.end_mark) :]
    segments = [Segment(template.system_template.format(system_message=system_message) + template.sep, False)]
    for turn in turns:
        if turn.role == "human":
            question = turn.value.strip()
            end = template.sep if question or template.ends_empty_question else ""
            segments.append(Segment(template.user_prefix + question + end, False))
        else:
            segments.append(Segment(template.assistant_prefix, False))
            segments.append(Segment(turn.value.strip() + template.end_mark, True))
            if after_end:
                segments.append(Segment(after_end, False))
    if add_generation_prompt:
        segments.append(Segment(template.assistant_prefix, False))
    return segments


def join_segments(segments: list[Segment]) -> str:
    """Return the whole prompt as one text."""
    return "".join(segment.text for segment in segments)


def place_images(turns: list[Turn], num_image_tokens: list[int]) -> list[Turn]:
    """Replace each ``<image>`` of the human turns, in order, by that image's run of image tokens.

    Raises:
        ValueError: the numbers of markers and images differ.
    """
    num_markers = sum(turn.value.count(IMAGE_PLACEHOLDER) for turn in turns if turn.role == "human")
    if num_markers != len(num_image_tokens):
        raise ValueError(
            f"The conversation has {num_markers} {IMAGE_PLACEHOLDER} markers but {len(num_image_tokens)} images. "
            "Give one marker per image."
        )
    counts = iter(num_image_tokens)
    placed = []
    for turn in turns:
        if turn.role == "human":
            head, *rest = turn.value.split(IMAGE_PLACEHOLDER)
            runs = (f"{IMG_START_TOKEN}{IMG_CONTEXT_TOKEN * next(counts)}{IMG_END_TOKEN}{text}" for text in rest)
            turn = turn._replace(value=head + "".join(runs))
        placed.append(turn)
    return placed
