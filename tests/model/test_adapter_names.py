"""The names in adapter files, taken apart."""

import pytest

from internvl.errors import UserError
from internvl.model.adapter_names import StoredTensor, take_apart

LAYER = "language_model.model.layers.0.attention.wo"
APART = "language_model.base_model.model.model.layers.0.attention.wo"


@pytest.mark.parametrize(
    ("stored", "name", "half", "adapter"),
    [
        (f"base_model.model.{LAYER}.lora_A.weight", LAYER, "lora_A", None),
        (f"{LAYER}.lora_B.weight", LAYER, "lora_B", None),
        (f"base_model.model.{LAYER}.lora_B.bias", LAYER, "lora_B.bias", None),
        (f"base_model.model.{LAYER}.lora_A.default.weight", LAYER, "lora_A", "default"),
        (f"base_model.model.{LAYER}.lora_B.mine.bias", LAYER, "lora_B.bias", "mine"),
        (f"base_model.model.{LAYER}.lora_magnitude_vector", LAYER, "lora_magnitude_vector", None),
        (f"base_model.model.{LAYER}.lora_magnitude_vector.weight", LAYER, "lora_magnitude_vector", None),
        (f"base_model.model.{LAYER}.lora_magnitude_vector.default.weight", LAYER, "lora_magnitude_vector", "default"),
        ("base_model.model.a.emb.lora_embedding_A", "a.emb", "lora_embedding_A", None),
        ("base_model.model.a.emb.lora_embedding_B.default", "a.emb", "lora_embedding_B", "default"),
        (f"{APART}.lora_A.default.weight", LAYER, "lora_A", "default"),
        (f"base_model.model.{LAYER}.base_layer.weight", f"{LAYER}.weight", "", None),
        ("base_model.model.mlp1.0.weight", "mlp1.0.weight", "", None),
        ("base_model.model.mlp1.modules_to_save.default.0.weight", "mlp1.0.weight", "", "default"),
    ],
)  # fmt: skip
def test_a_name_says_layer_tensor_and_adapter(stored, name, half, adapter):
    assert take_apart(stored, "file") == StoredTensor(name, half, adapter)


def test_pefts_copy_of_a_base_module_is_not_read():
    assert take_apart("base_model.model.mlp1.original_module.0.bias", "file") is None


@pytest.mark.parametrize("end", ["lora_diag", "hada_w1_a", "lora_velora_embed.default", "lora_E", "lora_A.a.b.weight",
                                 "token_adapter.trainable_tokens_delta"])  # fmt: skip
def test_tensors_of_other_methods_are_refused(end):
    with pytest.raises(UserError, match=r"^file: 'base_model\.model.*is not a tensor of LoRA or DoRA"):
        take_apart(f"base_model.model.{LAYER}.{end}", "file")
