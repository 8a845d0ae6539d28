"""Check a merge against PEFT itself, which reads the adapter's config and names on its own.

Our reader and our arithmetic would repeat their own mistakes; PEFT wraps the base as the training did, takes what it
finds in the file by its own rules, and merges.
"""

import warnings
from copy import deepcopy

import torch
from peft import PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from transformers import InternVLConfig, InternVLForConditionalGeneration

from internvl.errors import UserError
from internvl.model.adapter_names import PEFT_PREFIX, take_apart
from internvl.model.checkpoint import EMBEDDED_PREFIX, Checkpoint
from internvl.model.hf_config import hf_config
from internvl.model.hf_names import hf_names, join, split
from internvl.model.internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl.model.internvl_chat.modeling_internvl_chat import InternVLChatModel
from internvl.model.loading import load_model
from internvl.model.lora import Adapter
from internvl.model.safetensors_stream import DTYPE_OF_SPELLING

# Roundings of the merged weight and of a sum in another order, in units of the last place of the largest number.
TOLERANCE = 4


class PeftMerge:
    """An adapter on its base as PEFT has it, in float32 on the CPU.

    ``model`` is the whole model with PEFT's layers in it: ours, or transformers' own for an adapter of the -hf copy.

    Raises:
        UserError: PEFT does not read the adapter, or leaves tensors of it out.
    """

    def __init__(self, adapter: Adapter, base: Checkpoint):
        self.config = adapter.config
        self.is_hf = adapter.names.layout.is_hf
        folder = adapter.checkpoint.folder
        self.model = _load_hf(base, adapter.config) if self.is_hf else _load_published(base, adapter.config)
        part = self.model.get_submodule(adapter.names.layout.prefix.rstrip("."))
        tensors = {peft_name(name): adapter.checkpoint.tensor(name) for name in adapter.checkpoint.tensors}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about keys it ignores, and biases: what counts is compared
            try:
                config = PeftConfig.from_pretrained(str(folder))
                config.task_type = None  # it says what PEFT offers around a model, which a part may be too little for
                self.peft: PeftModel = get_peft_model(part, config)
                left_out = set_peft_model_state_dict(self.peft, tensors).unexpected_keys
            except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, ImportError) as err:
                reason = " ".join(str(err).split())[:300]
                raise UserError(
                    f"{folder}: PEFT itself does not read this adapter ({reason}), so the merge cannot be checked. "
                    "Nothing was written; --skip-self-check writes it all the same."
                ) from err
        if left_out:
            raise UserError(
                f"{folder}: PEFT itself leaves {len(left_out)} tensors of this adapter out, first {left_out[0]}, so "
                "the merge cannot be checked. Nothing was written; --skip-self-check writes it all the same."
            )
        self.model.eval()

    def check(self, merged: Checkpoint) -> str:
        """Merge, and return a line on how the merged folder compares.

        Raises:
            UserError: a weight differs by more than rounding.
        """
        self.peft.merge_and_unload()  # in place, so it is the part's weights that are merged in the whole model
        state, worst = self.model.state_dict(), 0.0
        for name, info in merged.tensors.items():
            parts = hf_names(name) if self.is_hf else (name,)
            expected = join(name, [state[part] for part in parts], self.config)
            unit = torch.finfo(DTYPE_OF_SPELLING[info.dtype]).eps * float(expected.abs().max())
            error = float((merged.tensor(name).float() - expected).abs().max())
            if not error <= TOLERANCE * unit:  # also of what is not a number
                raise UserError(
                    f"{name}: differs by {error:.2e} from what PEFT's own merge gives. Nothing was written. This is a "
                    "fault of this program; please report it with the adapter_config.json."
                )
            worst = max(worst, error)
        return f"PEFT's own merge gives the same {len(merged.tensors)} weights (largest difference {worst:.1e})"


def peft_name(stored: str) -> str:
    """Return a stored name as PEFT writes it: with its prefix, and without the adapter's name."""
    tensor = take_apart(stored, stored)
    if tensor is None or tensor.adapter is None:
        return stored if stored.startswith(PEFT_PREFIX) else PEFT_PREFIX + stored
    name = EMBEDDED_PREFIX.sub(r"\1.", stored.removeprefix(PEFT_PREFIX))
    if tensor.half.startswith("lora_"):
        head, _, tail = name.rpartition(f".{tensor.adapter}")
        name = head + tail
        if tensor.half == "lora_magnitude_vector":
            name = name.removesuffix(".weight")
    else:
        name = name.replace(f".modules_to_save.{tensor.adapter}.", ".")
    return PEFT_PREFIX + name


def _load_published(base: Checkpoint, config: InternVLChatConfig) -> InternVLChatModel:
    return load_model(base, config=deepcopy(config)).model


def _load_hf(base: Checkpoint, config: InternVLChatConfig) -> InternVLForConditionalGeneration:
    """Return a base as transformers' own model."""
    content = hf_config(config, {}, image_token_id=0, dtype="float32")
    state = {}
    for name in base.tensors:
        state.update(zip(hf_names(name), split(name, base.tensor(name), config), strict=True))
    return InternVLForConditionalGeneration.from_pretrained(
        None, config=InternVLConfig.from_dict(content), state_dict=state, dtype=torch.float32
    )
