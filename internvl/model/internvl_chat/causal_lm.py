"""A decoder with its output layer: logits, the loss at supervised positions, and the steps of generating.

Mixed into the causal language models of this folder, whichever decoder they have.

Axis letters: B batch, N new tokens, M all tokens (with the cached ones), P prompt, C channels, V vocabulary.
"""

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .compat import CACHE_NAME

IGNORE_INDEX = -100
# Positions whose logits are computed at once by a training step: 512 × 92,553 float32 are 190 MB.
LOSS_CHUNK = 512


def policy_logits(
    logits: torch.Tensor, temperature: float = 1.0, suppressed: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the logits, float32 (…, V), of what is drawn at a temperature and without some tokens, int64 (K,)."""
    logits = logits.float()
    if temperature != 1:
        logits = logits / temperature
    return logits if suppressed is None else logits.index_fill(-1, suppressed, float("-inf"))


class SupervisedCausalLM:
    """What turns a decoder, ``model``, into a language model that trains and generates."""

    def run_decoder(self, **inputs) -> BaseModelOutputWithPast:
        """Run the decoder on the arguments of :meth:`forward` that it takes."""
        return self.model(**inputs)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int = 0,
        loss_weight: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        return_logits: bool = True,
        num_loss_chunks: int | None = None,
        loss_temperature: float = 1.0,
        loss_suppressed: torch.Tensor | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Run the decoder (see :meth:`run_decoder`) and the output layer.

        Args:
            input_ids: int64 (B, N).
            attention_mask: (B, N), 1 where a token is.
            position_ids: int64 (B, N); counted from 0 without it.
            past_key_values: keys and values of the positions before, while generating.
            inputs_embeds: (B, N, C), instead of ``input_ids``.
            labels: int64 (B, N), not shifted; -100 where nothing is to be learnt.
            logits_to_keep: compute logits of the last N positions only, 0 for all.
            loss_weight: float (B, N), not shifted: the loss is then sum(weight · ce) / sum(weight).
            num_items_in_batch: divisor of the summed loss, in supervised tokens or their weights; without it, those of
                this call.
            return_logits: False computes the output layer at supervised positions alone, which is all a training
                step needs, and returns no logits.
            num_loss_chunks: how often the output layer is run for the loss; by default as often as needed. Where
                weights are sharded, all ranks must run it equally often.
            loss_temperature: what the loss divides logits by: answers that were drawn at it are weighed by it.
            loss_suppressed: int64 (K,), tokens without a probability in the loss, since none is drawn.
            kwargs: passed to :meth:`run_decoder` (``layout``, ``use_cache``, …).

        ``logits`` is float32 (B, N, V); ``loss`` a float32 scalar.
        """
        outputs = self.run_decoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        states = outputs.last_hidden_state
        logits = self.get_output_embeddings()(states[:, -logits_to_keep:]).float() if return_logits else None
        loss = None
        if labels is not None:
            loss = self.supervised_loss(
                states,
                labels,
                loss_weight,
                num_items_in_batch,
                num_loss_chunks,
                temperature=loss_temperature,
                suppressed=loss_suppressed,
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE_NAME: getattr(outputs, CACHE_NAME)},
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        past_key_values: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> dict:
        """Return the arguments of :meth:`forward` for the next step of ``generate``: what the cache does not hold yet.

        Args:
            input_ids: int64 (B, n), the whole sequence so far, or its generated part where the prompt came embedded.
            past_key_values: the cache, up to transformers 5.23.
            attention_mask: (B, M), 1 where a token is, of prompt and generated tokens together.
            inputs_embeds: (B, P, C), the prompt, where it came embedded.
            cache: the cache, from transformers 5.24 on.
            use_cache: whether there is to be one.
            kwargs: what transformers' versions pass besides, of which this needs nothing.
        """
        cache = cache if cache is not None else past_key_values
        num_cached = cache.get_seq_length() if cache is not None else 0
        if inputs_embeds is None:
            inputs = {"input_ids": input_ids[:, num_cached:]}
        else:
            num_prompt = inputs_embeds.shape[1]
            inputs = {"inputs_embeds": inputs_embeds[:, num_cached:]}
            if num_cached >= num_prompt:
                inputs = {"input_ids": input_ids[:, num_cached - num_prompt :]}
            elif input_ids.shape[1]:  # without a cache, every step reads everything
                generated = self.get_input_embeddings()(input_ids).to(inputs_embeds)
                inputs = {"inputs_embeds": torch.cat([inputs["inputs_embeds"], generated], dim=1)}
        if attention_mask is not None:
            positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
            inputs["position_ids"] = positions[:, num_cached:]
        return {
            **{name: value.contiguous() for name, value in inputs.items()},
            "attention_mask": attention_mask,
            "use_cache": use_cache,
            "logits_to_keep": 1,
            CACHE_NAME: cache,
        }

    def supervised_loss(
        self,
        states: torch.Tensor,
        labels: torch.Tensor,
        loss_weight: torch.Tensor | None = None,
        num_items: torch.Tensor | int | None = None,
        num_chunks: int | None = None,
        temperature: float = 1.0,
        suppressed: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the next-token cross-entropy, a float32 scalar, computing logits where there are labels only.

        Of more than ``LOSS_CHUNK`` supervised positions, logits exist for one chunk at a time, and again in the
        backward pass.

        Args:
            states: (B, N, C), the decoder's; state n predicts label n + 1.
            labels: int64 (B, N), as in :meth:`forward`.
            loss_weight: as in :meth:`forward`.
            num_items: divisor of the summed loss, ``num_items_in_batch`` of :meth:`forward`.
            num_chunks: into how many chunks to divide the positions, some of which may be empty.
            temperature: as of :meth:`token_losses`, like the next one.
            suppressed: tokens that have no probability.
        """
        targets = labels[:, 1:]
        supervised = targets != IGNORE_INDEX
        states, targets = states[:, :-1][supervised], targets[supervised].to(states.device)
        num_chunks = num_chunks or -(-len(targets) // LOSS_CHUNK)
        if num_chunks <= 1:
            losses = self.token_losses(states, targets, temperature, suppressed)
        else:
            chunks = zip(states.tensor_split(num_chunks), targets.tensor_split(num_chunks), strict=True)
            of_policy = (temperature, suppressed)
            parts = [checkpoint(self.token_losses, *chunk, *of_policy, use_reentrant=False) for chunk in chunks]
            losses = torch.cat(parts)
        weights = None
        if loss_weight is not None:
            weights = loss_weight[:, 1:][supervised].to(losses)
            losses = losses * weights
        if num_items is None:
            num_items = supervised.sum() if weights is None else weights.sum()
        if isinstance(num_items, torch.Tensor):
            num_items = num_items.to(losses.device)
        return losses.sum() / num_items

    def token_losses(
        self,
        states: torch.Tensor,
        targets: torch.Tensor,
        temperature: float = 1.0,
        suppressed: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the cross-entropy of each of K positions, float32 (K,).

        Args:
            states: (K, C).
            targets: int64 (K,).
            temperature: what logits are divided by.
            suppressed: int64, tokens that have no probability.
        """
        logits = policy_logits(self.get_output_embeddings()(states), temperature, suppressed)
        return F.cross_entropy(logits, targets, reduction="none")
