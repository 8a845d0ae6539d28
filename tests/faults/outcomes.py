"""How the inputs of a run's fault tests ended, printed at its end: reader → count of "read" and of "refused"."""

from collections import Counter

OUTCOMES: dict[str, Counter] = {}
