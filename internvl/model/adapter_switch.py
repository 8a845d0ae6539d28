"""One model that answers with its adapter and without: both share the weights of the base."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from internvl.model.adapter_reading import Adapter
from internvl.model.internvl_chat.modeling_internvl_chat import InternVLChatModel
from internvl.model.lora import add_adapter


class AdapterSwitch:
    """Puts an adapter beside the layers of its base, and takes it away for a while.

    Tensors that were trained whole, such as the projector's, are kept twice; all others once.
    """

    def __init__(self, model: InternVLChatModel, adapter: Adapter):
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self.replaced = {parameters[name]: parameters[name].detach().clone() for name in adapter.replaced}
        add_adapter(model, adapter)
        model.eval()
        self.layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]

    @contextmanager
    def off(self) -> Iterator[None]:
        """Let the model be the base in the block."""
        self._exchange()
        for layer in self.layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            self._exchange()
            for layer in self.layers:
                layer.enable_adapters(True)

    def _exchange(self) -> None:
        with torch.no_grad():
            for parameter, other in self.replaced.items():
                kept = other.clone()
                other.copy_(parameter)
                parameter.copy_(kept)
