"""Pictures and questions to model inputs: what ``AutoProcessor`` returns for a checkpoint."""

from transformers import BatchFeature, ProcessorMixin

from .compat import IS_TRANSFORMERS_4
from .conversation import Turn, get_conv_template, join_segments, place_pictures, render_turns


class InternVLChatProcessor(ProcessorMixin):
    """Tiles the pictures, renders the template and tokenizes, as ``model.chat`` does.

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

        ``text`` is a question or a list of them. Pictures are used up in the order of the ``<image>`` markers; a
        single question without markers gets one per picture in front.
        """
        questions = [text] if isinstance(text, str) else list(text)
        features = BatchFeature()
        counts = []
        if images is not None:
            features = self.image_processor(images, **kwargs)
            counts = [tiles * self.num_image_token for tiles in features.pop("num_patches_list")]
            if len(questions) == 1 and "<image>" not in questions[0]:
                questions[0] = "<image>\n" * len(counts) + questions[0]
        prompts = []
        for question in questions:
            num_pictures = question.count("<image>")
            turns = place_pictures([Turn("human", question)], counts[:num_pictures])
            counts = counts[num_pictures:]
            template = get_conv_template(self.template)
            prompts.append(join_segments(render_turns(template, turns, add_generation_prompt=True)))
        if counts:
            raise ValueError(
                f"{len(counts)} pictures have no <image> marker in the text. Give one marker per picture."
            )
        features.update(self.tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left"))
        return features
