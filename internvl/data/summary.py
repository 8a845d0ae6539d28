"""What a check found, in numbers: per data set and row by row, as report.json holds it."""

from collections import Counter

import numpy as np

from internvl.data.annotation import KINDS
from internvl.data.checking import BAD, CUT, LONG, UNWEIGHTED, DatasetCheck
from internvl.data.dataset import ConversationDataset
from internvl.data.meta import DatasetSpec


def summarize(dataset: ConversationDataset, check: DatasetCheck) -> dict:
    """Return the numbers of each data set, and every problem."""
    kinds = check.kinds(dataset)
    in_epoch = np.bincount(dataset.index[:, 0], minlength=len(dataset.files))
    sets = {}
    for spec in dataset.specs:
        numbers = dataset.file_numbers(spec)
        facts = np.concatenate([check.files[number].row_stats for number in numbers])
        sets[spec.name] = {
            "annotations": [str(path) for path in spec.annotations],
            "declared": spec.length,
            "rows_in_epoch": int(in_epoch[numbers].sum()),
            **_summarize_facts(facts),
            **({"balance": describe_balance(spec, kinds[spec.name])} if spec.balance else {}),
            "notes": dict(sum((check.files[number].all_notes() for number in numbers), Counter()).most_common()),
        }
    return {
        "max_seq_length": check.max_seq_length,
        "datasets": sets,
        "problems": [problem._asdict() for file in check.files for problem in file.problems],
    }


def describe_balance(spec: DatasetSpec, kinds: dict[str, float]) -> list[dict]:
    """Return, for each kind of answer, how much there is of it, before and after the balance; shares add up to 1.

    Answers without a kind, "", stay as they are.

    Raises:
        UserError: kinds and targets do not fit.
    """
    assert spec.balance is not None
    factors = spec.balance.factors(kinds, f"{spec.place}.balance")
    after = {kind: weight * factors.get(kind, 1.0) for kind, weight in kinds.items()}
    before_total, after_total = sum(kinds.values()), sum(after.values())
    return [
        {
            "kind": kind,
            "answers": weight,
            "share_before": weight / before_total,
            "factor": factors.get(kind, 1.0),
            "share_after": after[kind] / after_total,
        }
        for kind, weight in sorted(kinds.items(), key=lambda item: -item[1])
    ]


def _summarize_facts(facts: np.ndarray) -> dict:
    """Return the numbers of rows; those of tokens, turns and tiles are of rows without errors."""
    readable = facts[facts["status"] != BAD]
    return {
        "rows": len(facts),
        "kinds": {kind: int((readable["kind"] == number).sum()) for number, kind in enumerate(KINDS)},
        **{name: describe(readable[name]) for name in ("turns", "text_tokens", "image_tokens", "tiles")},
        "cut": int((facts["status"] == CUT).sum()),
        "left_out": int((facts["status"] == LONG).sum()),
        "weighted": int(readable["weighted"].sum()),
        "of_weight_0": int((facts["status"] == UNWEIGHTED).sum()),
        "duplicates": len(readable) - len(np.unique(readable["content"])),
        "errors": int((facts["status"] == BAD).sum()),
    }


def describe(values: np.ndarray) -> dict[str, int]:
    """Return median, 95th percentile, greatest value and sum; zeros when there are none."""
    if len(values) == 0:
        return {"p50": 0, "p95": 0, "max": 0, "total": 0}
    p50, p95 = np.percentile(values, [50, 95])
    return {"p50": round(p50), "p95": round(p95), "max": int(values.max()), "total": int(values.sum(dtype=np.int64))}
