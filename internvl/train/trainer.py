"""The trainer: transformers' own, with this project's row order, skipped rows, evaluation and output folder."""

import logging
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.integrations.deepspeed import deepspeed_load_checkpoint

from internvl.data.sampling import MicroBatchSampler
from internvl.data.sharing import EpochUnits
from internvl.errors import UserError
from internvl.model.adapter import load_adapter_tensors
from internvl.model.checkpoint import ADAPTER_WEIGHTS
from internvl.model.vision_cache import VisionCache, picture_features
from internvl.train.evaluation import Evaluator
from internvl.train.output import OutputFolder

logger = logging.getLogger(__name__)


class EpochLoader(DataLoader):
    """A loader that tells its sampler which epoch it is."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)


class FinetuneTrainer(Trainer):
    """Trains an InternVL-Chat model.

    The loss of an optimizer step is the mean over all supervised tokens of all its rows, on every process and
    accumulation step together, so it does not depend on how BATCH_SIZE is split. ``units`` are the rows of an epoch,
    or the groups of rows that train in one sequence; ``packed`` fills micro-batches by tokens. ``output`` writes
    checkpoints and the result; ``evaluator`` measures loss and CIDEr on the way; ``vision_cache`` keeps features of
    pictures. An unreadable row, or with ``on_bad_sample`` "skip" more of them than ``max_bad_fraction`` of an epoch's
    rows, ends the training with a :class:`UserError`.
    """

    def __init__(
        self,
        *args,
        output: OutputFolder,
        units: EpochUnits,
        packed: bool = False,
        evaluator: Evaluator | None = None,
        vision_cache: VisionCache | None = None,
        on_bad_sample: str = "skip",
        max_bad_fraction: float = 1.0,
        **kwargs,
    ):
        super().__init__(*args, eval_dataset=evaluator.dataset if evaluator else None, **kwargs)
        self.evaluator = evaluator
        self.vision_cache = vision_cache
        self.on_bad_sample = on_bad_sample
        # Of this process's share: whoever passes it ends all.
        self.max_skipped = max_bad_fraction * len(self.train_dataset) / self.args.world_size
        self.output = output
        self.units = units
        self.packed = packed
        self.skipped: list[dict] = []
        # Seconds spent waiting for data since the last log, and when that was.
        self.waited, self.logged_at = 0.0, time.monotonic()

    def make_sampler(self) -> MicroBatchSampler:
        """Return the sampler of this process's micro-batches."""
        args = self.args
        return MicroBatchSampler(
            self.units.groups,
            self.units.costs,
            batch_size=args.train_batch_size,
            num_batches=args.gradient_accumulation_steps * args.world_size,
            rank=args.process_index,
            world=args.world_size,
            packed=self.packed,
            seed=args.data_seed if args.data_seed is not None else args.seed,
        )

    def get_train_dataloader(self) -> DataLoader:
        # Not prepared by accelerate: the sampler yields this process's share already, which it would divide again.
        args = self.args
        return EpochLoader(
            self.train_dataset,
            batch_sampler=self.make_sampler(),
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            generator=torch.Generator(),  # or it would take a number from that of the training
        )

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        started = time.monotonic()
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.waited += time.monotonic() - started
        for batch in batches:
            for bad in batch.pop("skipped", []):
                # Here and not where the row is read: an error of a worker process arrives as its traceback.
                if self.on_bad_sample == "error":
                    raise UserError(bad.reason)
                self.skipped.append({"where": bad.where, "reason": bad.reason})
                logger.warning("Skipped %s", bad.reason)
        num_skipped = len({row["where"] for row in self.skipped})  # a row is met again in every epoch
        if num_skipped > self.max_skipped:
            raise UserError(
                f"{self.skipped[-1]['reason']} This is row {num_skipped} that had to be skipped, more than "
                "--max_bad_fraction allows; the run stops. Put the rows right, or raise it."
            )
        return batches, num_items

    def training_step(self, model, inputs, num_items_in_batch=None):
        if inputs.pop("idle", False):  # on every process alike, and never the last of a step
            return torch.zeros((), device=self.args.device)
        return super().training_step(model, inputs, num_items_in_batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            now = time.monotonic()
            logs["data_wait"] = round(self.waited / max(now - self.logged_at, 1e-9), 4)
            self.waited, self.logged_at = 0.0, now
        super().log(logs, start_time)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        # A step whose rows were all skipped has no supervised token; its loss is 0 / 1.
        if isinstance(num_items_in_batch, torch.Tensor):
            num_items_in_batch = num_items_in_batch.clamp(min=1)
        inputs["return_logits"] = False
        if "pictures" in inputs:
            own = self.accelerator.unwrap_model(model)
            inputs["visual_features"] = picture_features(own, inputs.pop("pictures"), self.vision_cache)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Measure loss, and CIDEr where it is due, log them and return them as eval_loss and eval_CIDEr."""
        evaluator, started = self.evaluator, time.monotonic()
        # As training calls it: DeepSpeed's ZeRO-3 gathers the weights in it. DDP would wait for gradients.
        model = self.model_wrapped if self.is_deepspeed_enabled else self.model
        own = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.eval()
        metrics = {"eval_loss": evaluator.loss(model, self.args.device)}
        due = evaluator.caption_steps and self.state.global_step % evaluator.caption_steps == 0
        if due or (evaluator.caption_steps and self.state.global_step >= self.state.max_steps):
            # Mixed precision is put around the model's forward, which generating goes past.
            with self.accelerator.autocast():
                metrics["eval_CIDEr"] = evaluator.cider(own)
        model.train(was_training)
        metrics["eval_runtime"] = round(time.monotonic() - started, 2)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _determine_best_metric(self, metrics, trial):
        name = self.args.metric_for_best_model
        if name and f"eval_{name.removeprefix('eval_')}" not in metrics:  # CIDEr is not measured every time
            return False
        return super()._determine_best_metric(metrics, trial)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        logger.info("Taking the best checkpoint: %s (%s).", best, self.state.best_metric)
        if self.is_deepspeed_enabled:
            deepspeed_load_checkpoint(self.model_wrapped, best, load_module_strict=False)
        else:
            self._load_from_checkpoint(best)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.should_save:
            self.output.save_model(self.accelerator.unwrap_model(self.model), output_dir, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        model = model if model is not None else self.model
        folder = Path(resume_from_checkpoint)
        if (folder / ADAPTER_WEIGHTS).is_file():
            load_adapter_tensors(model, load_file(folder / ADAPTER_WEIGHTS), folder)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_deepspeed_enabled:
            # Frozen weights are in the base already: without this each checkpoint would be the size of the model.
            save = self.model_wrapped.save_checkpoint
            self.model_wrapped.save_checkpoint = lambda folder: save(folder, exclude_frozen_parameters=True)
            try:
                super()._save_optimizer_and_scheduler(output_dir)
            finally:
                del self.model_wrapped.save_checkpoint
        else:
            super()._save_optimizer_and_scheduler(output_dir)

    def gather_skipped(self) -> list[dict]:
        """Return the rows skipped on all processes."""
        if self.args.world_size == 1:
            return self.skipped
        everywhere: list[list[dict] | None] = [None] * self.args.world_size
        torch.distributed.all_gather_object(everywhere, self.skipped)
        return [row for rows in everywhere for row in rows or []]
