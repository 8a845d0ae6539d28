"""Questions and answers in text: the public calls ``chat`` and ``batch_chat``, and the prompts they render.

Axis letters: T tiles, S tile side in px.
"""

import torch

from .conversation import (
    IMG_CONTEXT_TOKEN,
    IMG_END_TOKEN,
    IMG_START_TOKEN,
    Turn,
    get_conv_template,
    join_segments,
    place_images,
    render_turns,
)


class ChatMixin:
    """What turns a model that generates ids into one that answers; mixed into ``InternVLChatModel``."""

    def chat(
        self,
        tokenizer,
        pixel_values: torch.Tensor | None,
        question: str,
        generation_config: dict,
        history: list[tuple[str, str]] | None = None,
        return_history: bool = False,
        num_patches_list: list[int] | None = None,
        IMG_START_TOKEN: str = IMG_START_TOKEN,
        IMG_END_TOKEN: str = IMG_END_TOKEN,
        IMG_CONTEXT_TOKEN: str = IMG_CONTEXT_TOKEN,
        verbose: bool = False,
    ) -> str | tuple[str, list[tuple[str, str]]]:
        """Answer a question about images.

        Args:
            tokenizer: the model's.
            pixel_values: (T, 3, S, S), the tiles of all images of the conversation; None for text alone.
            question: a first one without ``<image>`` gets the marker put in front.
            generation_config: settings of transformers' ``generate``.
            history: the (question, answer) pairs before.
            return_history: also return the history to pass to the next call.
            num_patches_list: tiles of each image; None takes all of ``pixel_values`` as one image.
            IMG_START_TOKEN: for callers of the published model, like the next two.
            IMG_END_TOKEN: as above.
            IMG_CONTEXT_TOKEN: the token that stands for a feature of an image.
            verbose: print the prompt.

        Raises:
            ValueError: ``num_patches_list`` does not add up to the tiles.
        """
        if num_patches_list is None:
            num_patches_list = [len(pixel_values)] if pixel_values is not None else []
        if pixel_values is not None and sum(num_patches_list) != len(pixel_values):
            raise ValueError(
                f"num_patches_list {num_patches_list} adds up to {sum(num_patches_list)} tiles but pixel_values "
                f"holds {len(pixel_values)}. List the tiles of each image."
            )
        history = list(history or [])
        if not history and pixel_values is not None and "<image>" not in question:
            question = "<image>\n" + question
        prompt = self.build_prompt([*history, (question, None)], num_patches_list)
        if verbose:
            print(prompt)  # noqa: T201 - asked for by the caller
        self.img_context_token_id = tokenizer.convert_tokens_to_ids(IMG_CONTEXT_TOKEN)
        answer = self.answer_prompts(tokenizer, pixel_values, [prompt], generation_config)[0]
        return (answer, [*history, (question, answer)]) if return_history else answer

    def batch_chat(
        self,
        tokenizer,
        pixel_values: torch.Tensor | None,
        questions: list[str],
        generation_config: dict,
        num_patches_list: list[int] | None = None,
        history: None = None,
        return_history: bool = False,
        IMG_CONTEXT_TOKEN: str = IMG_CONTEXT_TOKEN,
    ) -> list[str]:
        """Answer one question an image, all in one batch.

        Args:
            tokenizer: the model's.
            pixel_values: (T, 3, S, S), the tiles of all images; None for questions without images.
            questions: those without ``<image>`` get the marker put in front.
            generation_config: settings of transformers' ``generate``.
            num_patches_list: tiles of the image of each question.
            history: not kept here; leave it None.
            return_history: not kept here; leave it False.
            IMG_CONTEXT_TOKEN: the token that stands for a feature of an image.

        Raises:
            ValueError: a history is asked for, or ``num_patches_list`` does not fit questions and tiles.
        """
        if history is not None or return_history:
            raise ValueError("batch_chat keeps no history. Use chat for a conversation.")
        if pixel_values is not None and (
            num_patches_list is None
            or len(num_patches_list) != len(questions)
            or sum(num_patches_list) != len(pixel_values)
        ):
            raise ValueError(
                f"batch_chat got {len(questions)} questions, {len(pixel_values)} tiles and num_patches_list "
                f"{num_patches_list}. Give one entry per question, adding up to the tiles."
            )
        prompts = []
        for question, num_tiles in zip(questions, num_patches_list or [None] * len(questions), strict=True):
            has_image = pixel_values is not None
            if has_image and "<image>" not in question:
                question = "<image>\n" + question
            prompts.append(self.build_prompt([(question, None)], [num_tiles] if has_image else []))
        self.img_context_token_id = tokenizer.convert_tokens_to_ids(IMG_CONTEXT_TOKEN)
        return self.answer_prompts(tokenizer, pixel_values, prompts, generation_config)

    def build_prompt(self, pairs: list[tuple[str, str | None]], num_tiles: list[int]) -> str:
        """Render (question, answer) pairs, the last answer open, with the image tokens of each image in place.

        ``num_tiles`` holds the tiles of each image, in the order of the ``<image>`` markers.
        """
        turns = []
        for question, answer in pairs:
            turns.append(Turn("human", question))
            if answer is not None:
                turns.append(Turn("gpt", answer))
        return self.render_prompt(turns, num_tiles)

    def render_prompt(self, turns: list[Turn], num_tiles: list[int]) -> str:
        """Render a conversation up to an open answer; ``num_tiles`` as in :meth:`build_prompt`."""
        turns = place_images(turns, [tiles * self.num_image_token for tiles in num_tiles])
        template = get_conv_template(self.template)
        return join_segments(
            render_turns(template, turns, system_message=self.system_message, add_generation_prompt=True)
        )

    def answer_prompts(
        self,
        tokenizer,
        pixel_values: torch.Tensor | None,
        prompts: list[str],
        generation_config: dict,
        visual_features: torch.Tensor | None = None,
    ) -> list[str]:
        """Generate from rendered prompts in one batch; return the answers up to the template's end mark, stripped.

        Args:
            tokenizer: the model's.
            pixel_values: (T, 3, S, S), the tiles of all prompts in order.
            prompts: with the image tokens in place.
            generation_config: settings of transformers' ``generate``.
            visual_features: (T, P, C), instead of ``pixel_values``.
        """
        end_mark = get_conv_template(self.template).end_mark
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left").to(self.device)
        options = {"eos_token_id": tokenizer.convert_tokens_to_ids(end_mark), **generation_config}
        given = {"pixel_values": pixel_values} if visual_features is None else {"visual_features": visual_features}
        output_ids = self.generate(
            **given,
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            **options,
        )
        texts = tokenizer.batch_decode(output_ids, skip_special_tokens=True)
        return [text.split(end_mark)[0].strip() for text in texts]
