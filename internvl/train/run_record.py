"""What an output folder is the result of: the record that says whether a command continues it, and how."""

import hashlib
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from internvl.data.meta import DatasetSpec
from internvl.errors import UserError, shorten
from internvl.train.checkpointing import PREFIX, STAGING, find_fault, hash_file, last_good_checkpoint

logger = logging.getLogger(__name__)
RECORD = "training_args.json"
FINISHED = "trainer_state.json"
RESULT_FILES = ("adapter_model.safetensors", "adapter_config.json", "data_report.json", "loss.png", FINISHED, RECORD)
# Flags that change where, how often and in how much detail things are written, or how the work is done, but not what
# comes out. Whole names: a beginning would also take save_full_model, and a finished run would not write it.
WITHOUT_EFFECT = frozenset(
    """
    output_dir overwrite_output_dir resume_from_checkpoint report_to run_name disable_tqdm project local_rank
    dataloader_drop_last dataloader_in_order dataloader_multiprocessing_context dataloader_num_workers
    dataloader_persistent_workers dataloader_pin_memory dataloader_prefetch_factor
    ddp_backend ddp_broadcast_buffers ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph ddp_timeout
    do_eval do_predict do_train
    eval_accumulation_steps eval_caption_samples eval_caption_steps eval_delay eval_do_concat_batches eval_on_start
    eval_steps eval_strategy eval_use_gather_object greater_is_better metric_for_best_model per_device_eval_batch_size
    hub_always_push hub_model_id hub_private_repo hub_revision hub_strategy hub_token push_to_hub
    log_level log_level_replica log_on_each_node
    logging_first_step logging_nan_inf_filter logging_steps logging_strategy
    save_on_each_node save_only_model save_steps save_strategy save_total_limit
    skip_memory_metrics torch_empty_cache_steps trackio_bucket_id trackio_space_id trackio_static_space_id
    grad_checkpoint vision_cache_gb
    """.split()
)


@dataclass(frozen=True)
class ResumePoint:
    """What there is to do: nothing (``finished``), go on from ``checkpoint``, or start (None)."""

    checkpoint: Path | None = None
    finished: bool = False


def describe_data(specs: list[DatasetSpec]) -> dict[str, str]:
    """Return what decides the rows of a training: each data set's entry, and the SHA-256 of its annotation files."""
    described = {}
    for spec in specs:
        described[spec.name] = repr(spec)
        for path in spec.annotations:
            described[f"{spec.name}: {path}"] = hash_file(path)
    return described


def settings_of(record: dict) -> dict[str, object]:
    """Return what of a record decides the result, as flat names."""
    settings = {}
    for group in ("ModelArguments", "DataArguments", "FinetuneArguments"):
        for name, value in record.get(group, {}).items():
            if name not in WITHOUT_EFFECT:
                settings[f"--{name}"] = value
    settings |= {f"data {file}": digest for file, digest in record.get("data", {}).items()}
    settings["processes"] = record.get("processes")
    settings["base weights"] = record.get("base")
    return settings


def find_differences(old: dict, new: dict) -> list[str]:
    """Return a line for each setting in which two records differ."""
    before, now = (settings_of(json.loads(json.dumps(record, default=str))) for record in (old, new))
    return [
        f"{name}: {shorten(before.get(name), 60)} then, {shorten(now.get(name), 60)} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def read_record(output_dir: Path) -> dict | None:
    """Return the record of an earlier run in this folder; None if there is none, or not a whole one."""
    try:
        record = json.loads((output_dir / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def find_resume_point(output_dir: str | Path, record: dict, *, overwrite: bool, named: str | None) -> ResumePoint:
    """Return how to go on in an output folder; ``record`` is that of this command, ``named`` a checkpoint it names.

    Changes nothing on disk.

    Raises:
        UserError: the folder holds a run of another command, or the named checkpoint is no whole one.
    """
    output_dir = Path(output_dir)
    if named:
        return ResumePoint(find_named(Path(named)))
    if overwrite or not output_dir.is_dir():
        return ResumePoint()
    finished = (output_dir / FINISHED).is_file()
    checkpoint = None if finished else last_good_checkpoint(output_dir)
    if not finished and checkpoint is None:
        return ResumePoint()
    earlier = read_record(output_dir)
    if earlier is None:
        raise UserError(
            f"{output_dir / RECORD}: is missing or damaged, so it cannot be told whether this command continues the "
            "run in this folder. Pass --overwrite_output_dir True to start anew, or name another folder."
        )
    differences = find_differences(earlier, record)
    if differences:
        shown = "\n".join(f"  {line}" for line in differences[:12])
        more = f"\n  and {len(differences) - 12} more" if len(differences) > 12 else ""
        raise UserError(
            f"{output_dir}: holds {'the result' if finished else 'a run'} of another command:\n{shown}{more}\n"
            "Pass --overwrite_output_dir True to start anew here, or name another folder (OUTPUT_DIR)."
        )
    return ResumePoint(checkpoint, finished)


def find_named(folder: Path) -> Path:
    """Return the checkpoint that --resume_from_checkpoint names, or the last good one in the folder it names."""
    if folder.is_dir() and not folder.name.startswith(PREFIX):
        folder = last_good_checkpoint(folder) or folder
    fault = find_fault(folder) if folder.is_dir() else "there is no such folder"
    if fault:
        raise UserError(f"--resume_from_checkpoint: {folder}: {fault}. Name a whole checkpoint-N folder.")
    return folder


def clear(output_dir: str | Path) -> None:
    """Delete what an earlier run left in an output folder; nothing else that may be there."""
    output_dir = Path(output_dir)
    for folder in (*output_dir.glob(f"{PREFIX}*"), output_dir / STAGING):
        if folder.is_dir():
            shutil.rmtree(folder)
    for file in (*(output_dir / name for name in RESULT_FILES), *output_dir.glob("model*.safetensors*")):
        file.unlink(missing_ok=True)


def base_identity(weight_files: list[Path]) -> str:
    """Return a short mark of a base's weights: the hash of their files' names, sizes and first bytes.

    The whole content is hashed when the adapter is saved; at the start that would cost seconds for what names, sizes
    and headers tell already.
    """
    digest = hashlib.sha256()
    for file in weight_files:
        with open(file, "rb") as stream:
            digest.update(f"{file.name} {file.stat().st_size}".encode() + stream.read(1 << 20))
    return digest.hexdigest()[:16]
