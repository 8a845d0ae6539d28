"""How far scores would move with other images: bootstrap intervals, and whether two models differ."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from internvl.evaluation.scorers import Scored

RESAMPLES = 1000
LEVEL = 0.95
# Weights held at a time: 160 MB.
_MAX_WEIGHTS = 20_000_000


@dataclass(frozen=True)
class Difference:
    """Second model minus first: ``low`` to ``high`` holds 95 % of the resampled differences.

    ``p_value`` is twice the share of resamples in which the difference has the other sign or is none, at most 1.
    """

    value: float
    low: float
    high: float
    p_value: float


def image_weights(
    num_images: int, resamples: int, seed: int, clusters: Sequence[str] | None = None
) -> Iterator[np.ndarray]:
    """Yield how often each image is drawn in each resample, float64 (some resamples, images); the same every time.

    Args:
        num_images: how many there are.
        resamples: how often they are drawn.
        seed: of the draws.
        clusters: what images belong together by: whole clusters are drawn, because ten questions about one scene are
            not ten scenes.
    """
    rng = np.random.default_rng(seed)
    names = dict.fromkeys(clusters) if clusters is not None else range(num_images)
    numbers = {name: number for number, name in enumerate(names)}
    cluster_of = np.array([numbers[name] for name in clusters]) if clusters is not None else np.arange(num_images)
    count = len(numbers)
    step = max(1, _MAX_WEIGHTS // num_images)
    for start in range(0, resamples, step):
        drawn = [rng.integers(count, size=count) for _ in range(min(step, resamples - start))]
        times = np.stack([np.bincount(chosen, minlength=count) for chosen in drawn])
        yield times[:, cluster_of].astype(np.float64)


def resample(
    results: Sequence[Scored],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    clusters: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """Return name → its corpus score on sets of images drawn with replacement, float64 (resamples,) (Efron 1979).

    Images are drawn alike for every scorer and every model of the same images, so results can be paired.

    Args:
        results: of the scorers.
        resamples: how often images are drawn.
        seed: of the draws.
        clusters: as of :func:`image_weights`.
    """
    num_images = len(results[0].statistics) if results else 0
    if num_images == 0:
        return {}
    parts: dict[str, list[np.ndarray]] = {name: [] for result in results for name in result.names}
    for weights in image_weights(num_images, resamples, seed, clusters):
        for result in results:
            scores = result.combine(weights @ result.statistics)
            for column, name in enumerate(result.names):
                parts[name].append(scores[:, column])
    return {name: np.concatenate(columns) for name, columns in parts.items()}


def percentile_interval(values: np.ndarray) -> tuple[float, float]:
    """Return the bounds of the middle 95 % of resampled values."""
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def intervals(results: Sequence[Scored], *, clusters: Sequence[str] | None = None) -> dict[str, tuple[float, float]]:
    """Return name → 95 % bootstrap interval of the corpus score; ``clusters`` as of :func:`image_weights`."""
    return {name: percentile_interval(values) for name, values in resample(results, clusters=clusters).items()}


def paired_differences(
    first: Sequence[Scored], second: Sequence[Scored], *, clusters: Sequence[str] | None = None
) -> dict[str, Difference]:
    """Compare two models on the same images in the same order (Koehn 2004); scores that only one has are left out.

    ``clusters`` are as of :func:`image_weights`.
    """
    before, after = (resample(results, clusters=clusters) for results in (first, second))
    corpus = [
        {name: value for result in results for name, value in zip(result.names, result.corpus, strict=True)}
        for results in (first, second)
    ]
    differences = {}
    for name in before:
        if name in after:
            moved = after[name] - before[name]
            value = corpus[1][name] - corpus[0][name]
            against = moved <= 0 if value > 0 else moved >= 0
            differences[name] = Difference(value, *percentile_interval(moved), min(1.0, 2 * float(against.mean())))
    return differences
