"""Configuration of the language model, InternLM2."""

from transformers import PretrainedConfig

ROPE_THETA = 10000.0  # where a file names none, as in the published configuration class


class InternLM2Config(PretrainedConfig):
    """Shape of an InternLM2 (arXiv:2403.17297): a Llama-like decoder with grouped-query attention.

    A published file names its rotary settings ``rope_theta`` and ``rope_scaling``; transformers 5 keeps both in
    ``rope_parameters``. Either form is read, and the published one is written, so that tools for the published
    checkpoint keep reading ours.
    """

    model_type = "internlm2"
    base_config_key = "llm_config"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        vocab_size: int = 103168,
        hidden_size: int = 4096,
        intermediate_size: int = 11008,
        num_hidden_layers: int = 32,
        num_attention_heads: int = 32,
        num_key_value_heads: int | None = None,
        hidden_act: str = "silu",
        max_position_embeddings: int = 2048,
        initializer_range: float = 0.02,
        rms_norm_eps: float = 1e-6,
        use_cache: bool = True,
        pad_token_id: int | None = 0,
        bos_token_id: int | None = 1,
        eos_token_id: int | list[int] | None = 2,
        tie_word_embeddings: bool = False,
        bias: bool = True,
        rope_theta: float | None = None,
        rope_scaling: dict | None = None,
        rope_parameters: dict | None = None,
        **kwargs,
    ):
        # The published file asks for flash_attention_2, which not every machine has. What computes attention is the
        # choice of whoever loads the model (`attn_implementation=`), not of the file.
        kwargs.pop("attn_implementation", None)
        super().__init__(**kwargs)
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_attention_heads if num_key_value_heads is None else num_key_value_heads
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.rms_norm_eps = rms_norm_eps
        self.use_cache = use_cache
        self.pad_token_id = pad_token_id
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.tie_word_embeddings = tie_word_embeddings
        self.bias = bias
        self.rope_parameters = read_rope(rope_parameters or rope_scaling, rope_theta)

    def to_dict(self) -> dict:
        """Return the published form, see :func:`with_published_rope`."""
        return with_published_rope(super().to_dict())


def with_published_rope(values: dict) -> dict:
    """Return a configuration with ``rope_theta`` and ``rope_scaling`` instead of ``rope_parameters``.

    transformers 4 reads only these, and takes its own base of the angles where they are missing.
    """
    values = dict(values)
    rope = values.pop("rope_parameters", None) or {}
    values["rope_theta"] = rope.get("rope_theta")
    scaled = rope.get("rope_type", "default") != "default"
    values["rope_scaling"] = {"type": rope["rope_type"], "factor": rope["factor"]} if scaled else None
    return values


def read_rope(settings: dict | None, theta: float | None) -> dict:
    """Return ``rope_type``, ``rope_theta`` and, where positions are scaled, ``factor``.

    ``settings`` is a file's ``rope_scaling`` (``type``, ``factor``) or ``rope_parameters`` (``rope_type``, …);
    ``theta`` its ``rope_theta``.

    Raises:
        ValueError: a scaling that InternLM2 does not have, or one without its factor.
    """
    settings = settings or {}
    rope_type = settings.get("rope_type") or settings.get("type") or "default"
    if rope_type not in ("default", "linear", "dynamic"):
        raise ValueError(
            f"config.json: rope_scaling type is {rope_type!r}; InternLM2 knows linear and dynamic. "
            "Use one of those, or null for none."
        )
    rope = {"rope_type": rope_type, "rope_theta": settings.get("rope_theta") or theta or ROPE_THETA}
    if rope_type != "default":
        if "factor" not in settings:
            raise ValueError(f"config.json: rope_scaling of type {rope_type!r} has no factor. Add it.")
        rope["factor"] = settings["factor"]
    return rope
