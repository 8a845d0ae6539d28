"""What an output folder is the result of: the record that says whether a command continues it, and how."""

import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from internvl.data.meta import DatasetSpec
from internvl.errors import UserError, shorten
from internvl.json_files import write_json
from internvl.reward.rewards import FREQUENCIES
from internvl.train.checkpointing import PREFIX, STAGING, hash_file, last_good_checkpoint, verify_manifest

logger = logging.getLogger(__name__)
RECORD = "training_args.json"
RECORDED_PACKAGES = ("torch", "torchvision", "transformers", "tokenizers", "peft", "accelerate", "deepspeed", "pillow")
FINISHED = "trainer_state.json"
REPORT = "data_report.json"
RESULT_FILES = (
    "adapter_model.safetensors", "adapter_config.json", REPORT, "loss.png", "run.html", FREQUENCIES, FINISHED, RECORD,
)  # fmt: skip
# Flags that change where, how often and in how much detail things are written, or how the work is done, but not what
# comes out. Whole names: a beginning would also take save_full_model, and a finished run would not write it.
WITHOUT_EFFECT = frozenset(
    """
    output_dir overwrite_output_dir resume_from_checkpoint report_to run_name disable_tqdm project local_rank
    dataloader_drop_last dataloader_in_order dataloader_multiprocessing_context dataloader_num_workers
    dataloader_persistent_workers dataloader_pin_memory dataloader_prefetch_factor
    ddp_backend ddp_broadcast_buffers ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph ddp_timeout
    do_eval do_predict do_train
    eval_accumulation_steps eval_answer_steps eval_caption_samples eval_caption_steps eval_delay eval_match
    eval_do_concat_batches eval_on_start eval_steps eval_strategy eval_use_gather_object greater_is_better
    metric_for_best_model per_device_eval_batch_size
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
        if spec.balance:
            described[f"{spec.name}: balance"] = repr(spec.balance)
        for path in spec.annotations:
            described[f"{spec.name}: {path}"] = hash_file(path)
    return described


def _installed_version(package: str) -> str | None:
    """Return the version of a package; None where it is not installed, as DeepSpeed need not be."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def make_record(groups: Sequence[Any], processes: int, data: dict[str, str], base: str) -> dict:
    """Return what training_args.json holds: the resolved arguments, the data's hashes, and what it ran on.

    Args:
        groups: the arguments as parsed, group by group.
        processes: number of ranks.
        data: file → hash, of :func:`describe_data`.
        base: the mark of the base's weights, of :func:`base_identity`.
    """
    return {
        "command": sys.argv,
        **{type(group).__name__: group.to_dict() if hasattr(group, "to_dict") else asdict(group) for group in groups},
        "data": data,
        "base": base,
        "processes": processes,
        "versions": {
            "python": sys.version.split()[0],
            **{package: _installed_version(package) for package in RECORDED_PACKAGES},
        },
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def _settings_of(record: dict) -> dict[str, object]:
    """Return what of a record decides the result, as flat names."""
    settings = {}
    for group in ("ModelArguments", "DataArguments", "FinetuneArguments", "RewardArguments"):
        for name, value in record.get(group, {}).items():
            if name not in WITHOUT_EFFECT:
                settings[f"--{name}"] = value
    settings |= {f"data {file}": digest for file, digest in record.get("data", {}).items()}
    settings["processes"] = record.get("processes")
    settings["base weights"] = record.get("base")
    return settings


def find_differences(old: dict, new: dict) -> list[str]:
    """Return a line for each setting in which two records differ."""
    before, now = (_settings_of(json.loads(json.dumps(record, default=str))) for record in (old, new))
    return [
        f"{name}: {shorten(before.get(name), 60)} then, {shorten(now.get(name), 60)} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


class RunFolder:
    """The output folder of a run: its record, the point to resume from, and what is cleared before it begins.

    ``record`` is that of this command, as :func:`make_record` returns it; the folder holds that of the run in it.
    """

    def __init__(self, path: str | Path, record: dict):
        self.path = Path(path)
        self.record = record

    def find_resume_point(self, overwrite: bool, named: str | None) -> ResumePoint:
        """Return how to go on in this folder; changes nothing on disk. ``named`` is a checkpoint that the user names.

        Raises:
            UserError: the folder holds a run of another command, or the named checkpoint is not whole.
        """
        if named:
            return ResumePoint(_find_named(Path(named)))
        if overwrite or not self.path.is_dir():
            return ResumePoint()
        finished = (self.path / FINISHED).is_file()
        checkpoint = None if finished else last_good_checkpoint(self.path)
        if not finished and checkpoint is None:
            return ResumePoint()
        self.check_record("the result" if finished else "a run")
        return ResumePoint(checkpoint, finished)

    def check_record(self, what: str) -> None:
        """Refuse to go on with ``what`` the folder holds if another command made it.

        Raises:
            UserError: names each setting in which the two differ.
        """
        earlier = self.read_record()
        if earlier is None:
            raise UserError(
                f"{self.path / RECORD}: is missing or damaged, so it cannot be told whether this command continues "
                "the run in this folder. Pass --overwrite_output_dir True to start anew, or name another folder."
            )
        differences = find_differences(earlier, self.record)
        if differences:
            shown = "\n".join(f"  {line}" for line in differences[:12])
            more = f"\n  and {len(differences) - 12} more" if len(differences) > 12 else ""
            raise UserError(
                f"{self.path}: holds {what} of another command:\n{shown}{more}\n"
                "Pass --overwrite_output_dir True to start anew here, or name another folder (OUTPUT_DIR)."
            )

    def read_record(self) -> dict | None:
        """Return the record of the run in this folder; None if there is none, or not a whole one."""
        try:
            record = json.loads((self.path / RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return record if isinstance(record, dict) else None

    def begin(self, resume: ResumePoint) -> None:
        """Write the record; a run that starts anew first deletes what an earlier one left, and nothing else."""
        if not resume.checkpoint:
            for folder in (*self.path.glob(f"{PREFIX}*"), self.path / STAGING):
                if folder.is_dir():
                    shutil.rmtree(folder)
            for file in (*(self.path / name for name in RESULT_FILES), *self.path.glob("model*.safetensors*")):
                file.unlink(missing_ok=True)
        write_json(self.path / RECORD, self.record)


def _find_named(folder: Path) -> Path:
    """Return the checkpoint that --resume_from_checkpoint names, or the last good one in the folder it names."""
    if folder.is_dir() and not folder.name.startswith(PREFIX):
        folder = last_good_checkpoint(folder) or folder
    fault = verify_manifest(folder) if folder.is_dir() else "there is no such folder"
    if fault:
        raise UserError(f"--resume_from_checkpoint: {folder}: {fault}. Name a whole checkpoint-N folder.")
    return folder


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
