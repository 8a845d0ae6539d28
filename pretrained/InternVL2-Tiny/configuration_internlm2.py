"""Configuration of the language model, InternLM2."""

from transformers import PretrainedConfig


class InternLM2Config(PretrainedConfig):
    """Shape of an InternLM2 (arXiv:2403.17297): a Llama-like decoder with grouped-query attention.

    A published file names its rotary settings ``rope_theta`` and ``rope_scaling``; transformers 5 keeps both in
    ``rope_parameters``. Either form is read, and the published one is written, so that tools for the published
    checkpoint keep reading ours.
    """

    model_type = "internlm2"
    base_config_key = "llm_config"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 103168
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False
    bias: bool = True
    rope_parameters: dict | None = None

    def __post_init__(self, **kwargs):
        # The published file asks for flash_attention_2, which not every machine has. What computes attention is the
        # choice of whoever loads the model (`attn_implementation=`), not of the file.
        kwargs.pop("attn_implementation", None)
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        super().__post_init__(**kwargs)
        rope_type = self.rope_parameters["rope_type"]
        if rope_type not in ("default", "linear", "dynamic"):
            raise ValueError(
                f"config.json: rope_scaling type is {rope_type!r}; InternLM2 knows linear and dynamic. "
                "Use one of those, or null for none."
            )

    def to_dict(self) -> dict:
        """Return the published form: ``rope_theta`` and ``rope_scaling`` instead of ``rope_parameters``."""
        values = super().to_dict()
        rope = dict(values.pop("rope_parameters", None) or {})
        values["rope_theta"] = rope.get("rope_theta")
        scaled = rope.get("rope_type", "default") != "default"
        values["rope_scaling"] = {"type": rope["rope_type"], "factor": rope["factor"]} if scaled else None
        return values
