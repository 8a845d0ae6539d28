"""Preferences as a weighted loss: what each answer's cross-entropy is multiplied with for the gradient of DPO or MPO.

With s = log p − log p of the start, of a chosen (c) and a rejected (r) answer, and σ the logistic function:

    DPO (arXiv:2305.18290):  −log σ(β (s_c − s_r))
    BCO (arXiv:2404.04656):  −log σ(β s_c) − log σ(−β s_r), without the paper's moving shift of rewards, as TRL has it
    MPO (arXiv:2411.10442):  0.8 DPO + 0.2 BCO + 1.0 cross-entropy of the chosen answers' tokens

Their derivative by −log p of an answer, taken as its weight, gives the weighted loss of a finetune their gradient. So
pairs share their image and question as all answers do.
"""

from typing import NamedTuple

import numpy as np

CHOSEN, REJECTED = 0, 1  # the columns of scores and weights


class PreferenceParts(NamedTuple):
    """What an objective is made of: the weight of each of its losses."""

    dpo: float
    bco: float
    supervised: float


OBJECTIVES = {"dpo": PreferenceParts(1.0, 0.0, 0.0), "mpo": PreferenceParts(0.8, 0.2, 1.0)}


def preference_loss(scores: np.ndarray, parts: PreferenceParts, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the loss of each pair, without its supervised part, and the weights of its answers' cross-entropies.

    Args:
        scores: float64 (pairs, 2): how much more likely, in nats, the chosen and the rejected answer became.
        parts: of the objective.
        beta: β, what a nat counts; small lets the model go far from its start.

    Returns:
        float64 (pairs,), and float64 (pairs, 2): the loss's derivative by −log p of each answer.
    """
    chosen, rejected = beta * scores[:, CHOSEN], beta * scores[:, REJECTED]
    losses = parts.dpo * _softplus(rejected - chosen) + parts.bco * (_softplus(-chosen) + _softplus(rejected))
    apart = parts.dpo * _sigmoid(rejected - chosen)
    weights = np.stack(
        [beta * (apart + parts.bco * _sigmoid(-chosen)), -beta * (apart + parts.bco * _sigmoid(rejected))], axis=1
    )
    return losses, weights


def _softplus(x: np.ndarray) -> np.ndarray:
    """Return −log σ(−x)."""
    return np.logaddexp(0.0, x)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -x))
