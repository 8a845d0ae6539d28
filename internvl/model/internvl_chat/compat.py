"""What differs between the versions of transformers that a checkpoint's code meets: 4.57 to 5.24.

Everything else in this folder relies on what all of them have.
"""

import logging
from dataclasses import fields

import torch
import transformers
from transformers import PretrainedConfig
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

OLDEST, NEWEST = (4, 57), (5, 24)  # tests/compat/run.sh runs every operation on these and between
IS_TRANSFORMERS_4 = transformers.__version__.startswith("4.")

# The key/value cache: `past_key_values` up to 5.23, `cache` from 5.24 on, in outputs and in what generate() hands on.
CACHE_NAME = "cache" if "cache" in {field.name for field in fields(CausalLMOutputWithPast)} else "past_key_values"


def warn_if_untested(version: str = transformers.__version__) -> None:
    """Log one line where this folder was not tested with the installed transformers."""
    installed = tuple(int(part) for part in version.split(".")[:2])
    if not OLDEST <= installed <= NEWEST:
        logging.getLogger(__name__).warning(
            "This model's code is tested with transformers %d.%d to %d.%d, and %s is installed: compare its answers "
            "with those of a tested version.",
            *OLDEST,
            *NEWEST,
            version,
        )


def open_cache(
    config: PretrainedConfig, cache: Cache | None, use_cache: bool | None, training: bool
) -> tuple[Cache | None, bool, int]:
    """Return the cache of a decoder's call, a new one if there is to be one, whether there is, and the tokens in it.

    Args:
        config: of the decoder.
        cache: what the caller hands on, under either of its names.
        use_cache: whether there is to be one; None for what ``config`` says, and never in training.
        training: whether the decoder trains.
    """
    use_cache = config.use_cache and not training if use_cache is None else use_cache
    if use_cache and cache is None:
        cache = DynamicCache(config=config)
    return cache, use_cache, cache.get_seq_length() if cache is not None else 0


def fill_unless_loaded(parameter: torch.Tensor, mean: float = 0.0, std: float = 0.0) -> None:
    """Give a parameter its initial values, normal around ``mean``, unless a checkpoint's were put there.

    transformers 5 marks loaded parameters and initialises each of the others; 4.57 asks for whole modules.
    """
    if not getattr(parameter, "_is_hf_initialized", False):
        with torch.no_grad():
            parameter.normal_(mean, std) if std else parameter.fill_(mean)
