"""Images and questions to model inputs: what ``AutoProcessor`` returns for a checkpoint."""

from transformers import BatchFeature, ProcessorMixin

from .compat import IS_TRANSFORMERS_4
from .conversation import Turn, get_conv_template, join_segments, place_images, render_turns

ROLES = {"system": "system", "user": "human", "assistant": "gpt"}


class InternVLChatProcessor(ProcessorMixin):
    """Tiles the images, renders the template and tokenizes, as ``model.chat`` does.

    ``num_image_token`` is the number of language model tokens a tile takes; ``template`` names the conversation
    template. Both come from the checkpoint's config.
    """

    if IS_TRANSFORMERS_4:  # its successor reads the constructor's signature, and warns of these
        attributes = ["image_processor", "tokenizer"]
        image_processor_class = "AutoImageProcessor"
        tokenizer_class = "AutoTokenizer"

    def __init__(self, image_processor=None, tokenizer=None, num_image_token=256, template="internlm2-chat", **kwargs):
        super().__init__(image_processor, tokenizer)
        self.num_image_token = num_image_token
        self.template = template

    def __call__(self, images=None, text: str | list[str] = "", **kwargs) -> BatchFeature:
        """Return ``input_ids``, ``attention_mask`` (padded on the left) and ``pixel_values`` for ``model.generate``.

        ``text`` is a question or a list of them. Images are used up in the order of the ``<image>`` markers; a
        single question without markers gets one per image in front.
        """
        questions = [text] if isinstance(text, str) else list(text)
        if images is not None and len(questions) == 1 and "<image>" not in questions[0]:
            num_images = len(images) if isinstance(images, (list, tuple)) else 1
            questions[0] = "<image>\n" * num_images + questions[0]
        return self.encode([[Turn("human", question)] for question in questions], images, **kwargs)

    def encode(self, conversations: list[list[Turn]], images=None, *, add_generation_prompt: bool = True, **kwargs):
        """Return the model inputs of conversations, as :meth:`__call__` does of questions.

        Args:
            conversations: the turns of each, with an ``<image>`` marker for each image.
            images: the images of all, in the order of the markers.
            add_generation_prompt: end with an open answer.
            kwargs: settings of the image processor.

        Raises:
            ValueError: markers and images differ in number.
        """
        features, counts = BatchFeature(), []
        if images is not None and not (isinstance(images, (list, tuple)) and not images):
            features = self.image_processor(images, **kwargs)
            counts = [tiles * self.num_image_token for tiles in features.pop("num_patches_list")]
        prompts = []
        for turns in conversations:
            num_images = sum(turn.value.count("<image>") for turn in turns if turn.role == "human")
            placed = place_images(turns, counts[:num_images])
            counts = counts[num_images:]
            template = get_conv_template(self.template)
            segments = render_turns(template, placed, add_generation_prompt=add_generation_prompt)
            prompts.append(join_segments(segments))
        if counts:
            raise ValueError(f"{len(counts)} images have no <image> marker in the text. Give one marker per image.")
        features.update(self.tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left"))
        return features

    def apply_chat_template(
        self, conversation: list[dict], *, add_generation_prompt: bool = False, tokenize: bool = False, **kwargs
    ) -> str | BatchFeature:
        """Render a conversation of ``{"role", "content"}`` messages as training does.

        A content is text, or a list of ``{"type": "text", "text"}`` and ``{"type": "image", "image" | "path"}`` parts.
        Returns the prompt with ``<image>`` markers, or with ``tokenize`` the model inputs, images and all.
        """
        turns, images = [], []
        for message in conversation:
            if message["role"] not in ROLES:
                raise ValueError(f"Roles are {', '.join(ROLES)}, not {message['role']!r}. Rename it.")
            parts = message["content"]
            parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
            images += [part.get("image", part.get("path")) for part in parts if part["type"] == "image"]
            texts = ("<image>\n" if part["type"] == "image" else part["text"] for part in parts)
            turns.append(Turn(ROLES[message["role"]], "".join(texts)))
        if tokenize:
            return self.encode([turns], images, add_generation_prompt=add_generation_prompt)
        template = get_conv_template(self.template)
        segments = render_turns(template, turns, add_generation_prompt=add_generation_prompt)
        return (self.tokenizer.bos_token or "") + join_segments(segments)
