"""The prompt of training as a Jinja chat template, for tokenizers, processors and servers."""

import json

from internvl.model.internvl_chat.conversation import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER, ConversationTemplate


def chat_template(
    template: ConversationTemplate,
    *,
    image: str = f"{IMAGE_PLACEHOLDER}\n",
    video: str = f"{VIDEO_PLACEHOLDER}\n",
    has_bos: bool = True,
) -> str:
    """Return ``template`` in Jinja, as ``apply_chat_template`` takes it; it renders what ``render_turns`` does.

    A message's content is text, or a list of parts: ``{"type": "text", "text": …}``, ``{"type": "image"}``,
    ``{"type": "video"}``, or the ``image_url`` and ``video_url`` of OpenAI's requests.

    Args:
        template: the model's.
        image: what an image's part becomes; whoever reads the images puts the right number of tokens in place.
        video: what a video's part becomes.
        has_bos: whether the tokenizer has a first token: then it is part of the text, because
            ``apply_chat_template`` adds none.
    """
    before_system, after_system = template.system_template.split("{system_message}")
    # An empty question has no end mark with some templates: each published model as it was trained.
    ends_question = "true" if template.ends_empty_question else "text"
    return "".join(
        [
            "{%- macro flat(content) -%}{%- if content is string -%}{{ content }}{%- else -%}",
            "{%- for part in content -%}",
            f"{{%- if part['type'] in ['image', 'image_url'] -%}}{{{{ {quoted(image)} }}}}",
            f"{{%- elif part['type'] in ['video', 'video_url'] -%}}{{{{ {quoted(video)} }}}}",
            "{%- else -%}{{ part['text'] }}{%- endif -%}",
            "{%- endfor -%}{%- endif -%}{%- endmacro -%}",
            "{%- if messages[0]['role'] == 'system' -%}",
            "{%- set system, turns = flat(messages[0]['content']) | trim, messages[1:] -%}{%- else -%}",
            f"{{%- set system, turns = {quoted(template.system_message)}, messages -%}}{{%- endif -%}}",
            "{{ bos_token + " if has_bos else "{{ ",
            f"{quoted(before_system)} + system + {quoted(after_system + template.sep)} }}}}",
            "{%- for turn in turns -%}{%- set text = flat(turn['content']) | trim -%}",
            "{%- if turn['role'] == 'user' -%}",
            f"{{{{ {quoted(template.user_prefix)} + text + ({quoted(template.sep)} if {ends_question} else '') }}}}",
            "{%- elif turn['role'] == 'assistant' -%}",
            f"{{{{ {quoted(template.assistant_prefix)} + text + {quoted(template.sep)} }}}}",
            "{%- else -%}{{ raise_exception('Roles are user and assistant, and system in front, not '",
            " + turn['role']) }}{%- endif -%}{%- endfor -%}",
            f"{{%- if add_generation_prompt -%}}{{{{ {quoted(template.assistant_prefix)} }}}}{{%- endif -%}}",
        ]
    )


def quoted(text: str) -> str:
    """Return ``text`` as a Jinja string."""
    return json.dumps(text, ensure_ascii=False)
