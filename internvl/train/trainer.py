"""The trainer: transformers' own, with this project's row order, skipped rows, evaluation and output folder."""

import logging
import math
import time
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path

import torch
from peft import PeftModel
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState

from internvl.data.batch import Batch
from internvl.data.sampling import MicroBatchSampler
from internvl.distributed import all_ranks, gather_lists
from internvl.errors import UserError
from internvl.model.adapter import load_trained, unwrapped
from internvl.model.checkpoint import Checkpoint
from internvl.model.internvl_chat.modeling_internvl_chat import InternVLChatModel
from internvl.model.vision_cache import VisionCache, image_features
from internvl.train.checkpointing import PREFIX, atomic_checkpoint
from internvl.train.data_workers import end_on_lost_batch
from internvl.train.epoch_plan import EpochPlan
from internvl.train.output import OutputFolder
from internvl.train.sharding import equal_calls, shards_parameters, weights_only_checkpoints
from internvl.train.validation import Evaluator

logger = logging.getLogger(__name__)


class SkippedRows(TrainerCallback, ExportableState):
    """Rows and steps that were left out, in ``trainer_state.json`` of every checkpoint.

    ``rows`` are this process's. ``before`` are those of all processes up to the checkpoint that the training continues
    from, and ``saved`` those up to the one that is being written.
    """

    def __init__(self) -> None:
        self.rows: list[dict] = []
        self.before: list[dict] = []
        self.saved: list[dict] = []
        self.steps: list[int] = []

    def state(self) -> dict:
        return {"args": {}, "attributes": {"rows": self.saved, "steps": self.steps}}

    def on_train_begin(self, args, state, control, **kwargs):
        # Not by --restore_callback_states_from_checkpoint, which would restore the counters of other callbacks, too.
        stored = state.stateful_callbacks.get(type(self).__name__)
        if isinstance(stored, dict):
            self.before, self.steps = list(stored["attributes"]["rows"]), list(stored["attributes"]["steps"])

    def gather(self) -> list[dict]:
        """Return the rows skipped on all processes since the training began."""
        return self.before + gather_lists(self.rows)


class EpochLoader(DataLoader):
    """A loader that tells its sampler which epoch it is."""

    batch_sampler: MicroBatchSampler

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)


class FinetuneTrainer(Trainer):
    """Trains an InternVL-Chat model.

    The loss of an optimizer step is the mean over all supervised tokens of all its rows, by their weights, on every
    rank and accumulation step together, so it does not depend on how BATCH_SIZE is split. ``plan`` says which rows
    share a step and a micro-batch; ``output`` writes checkpoints and the result; ``evaluator`` measures loss and CIDEr
    on the way; ``vision_cache`` keeps features of images.

    Ends with a :class:`UserError`: an unreadable row, or with ``on_bad_sample`` "skip" more of them than
    ``max_bad_fraction`` of an epoch's rows; a loss that is not finite, unless ``on_nan`` is "skip".
    """

    def __init__(
        self,
        *args,
        output: OutputFolder,
        plan: EpochPlan,
        evaluator: Evaluator | None = None,
        vision_cache: VisionCache | None = None,
        on_bad_sample: str = "skip",
        max_bad_fraction: float = 1.0,
        on_nan: str = "stop",
        **kwargs,
    ):
        super().__init__(*args, eval_dataset=evaluator.dataset if evaluator else None, **kwargs)
        self.evaluator = evaluator
        self.vision_cache = vision_cache
        self.on_bad_sample = on_bad_sample
        # Of this process's share: whoever passes it ends all.
        self.max_skipped = max_bad_fraction * len(self.train_dataset) / self.args.world_size
        self.output = output
        self.plan = plan
        self.skipped = SkippedRows()
        self.add_callback(self.skipped)
        self.on_nan = on_nan
        self.step_losses: list[tuple[torch.Tensor, list[str]]] = []  # of this step's micro-batches, with their rows
        # Of this micro-batch. Not among the inputs: with DeepSpeed, transformers casts those to the model's precision.
        self.loss_weight: torch.Tensor | None = None
        # Seconds spent waiting for data since the last log, and when that was.
        self.waited, self.logged_at = 0.0, time.monotonic()

    @property
    def chat_model(self) -> InternVLChatModel:
        """The model without the wraps of PEFT, DDP and DeepSpeed; LoRA layers are in it."""
        return unwrapped(self.accelerator.unwrap_model(self.model))

    def get_train_dataloader(self) -> DataLoader:
        # Not prepared by accelerate: the sampler yields this process's share already, which it would divide again.
        args = self.args
        return EpochLoader(
            self.train_dataset,
            batch_sampler=self.plan.sampler(args),
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            worker_init_fn=end_on_lost_batch,
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
            for bad in batch.skipped:
                # Here and not where the row is read: an error of a worker process arrives as its traceback.
                if self.on_bad_sample == "error":
                    raise UserError(bad.reason)
                self.skipped.rows.append({"where": bad.where, "reason": bad.reason})
                logger.warning("Skipped %s", bad.reason)
        num_skipped = len({row["where"] for row in self.skipped.rows})  # a row is met again in every epoch
        if num_skipped > self.max_skipped:
            raise UserError(
                f"{self.skipped.rows[-1]['reason']} This is row {num_skipped} that had to be skipped, more than "
                "--max_bad_fraction allows; the run stops. Put the rows right, or raise it."
            )
        if self.plan.weighted and batches:
            weight = torch.stack([batch.supervised_weight for batch in batches]).sum().to(device)
            num_items = self.accelerator.gather(weight).sum()
        return batches, num_items

    def training_step(self, model, batch: Batch, num_items_in_batch=None):
        if batch.is_idle:  # on every rank alike, and never the last of a step
            return torch.zeros((), device=self.args.device)
        # Of page-locked memory the copy goes on while the GPU computes; transformers would wait for it.
        batch = batch.to(self.args.device, non_blocking=True)
        features = None
        if batch.images is not None:
            features = image_features(self.chat_model, batch.images, self.vision_cache)
        inputs = batch.model_inputs(features)
        self.loss_weight = inputs.pop("loss_weight", None)
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.step_losses.append((loss, batch.rows))
        if self.accelerator.sync_gradients:
            self._check_finite_losses(model)
        return loss

    def _check_finite_losses(self, model: torch.nn.Module) -> None:
        """Stop, or leave the step out, if a loss of the step is not a number; on every process alike.

        Raises:
            UserError: names the rows it came with.
        """
        losses, self.step_losses = self.step_losses, []
        finite = torch.stack([loss.float() for loss, _ in losses]).isfinite()
        if all_ranks(finite.all()):
            return
        rows = [where for (_, rows), good in zip(losses, finite.tolist(), strict=True) if not good for where in rows]
        named = ", ".join(dict.fromkeys(gather_lists(rows))) or "no row at all"
        what = f"step {self.state.global_step + 1}: the loss is not a number. It came with {named}."
        if self.on_nan == "stop":
            raise UserError(
                f"{what} The last checkpoint is as it was. Look at these rows, lower --learning_rate, take "
                "PRECISION=bf16 instead of fp16, or pass --on_nan skip to leave such steps out."
            )
        logger.warning("%s The step is left out (--on_nan skip).", what)
        self.skipped.steps.append(self.state.global_step + 1)
        scaled = self.accelerator.scaler is not None
        for parameter in model.parameters():
            if parameter.grad is not None and scaled:
                parameter.grad.fill_(float("inf"))  # which the scaler of fp16 answers by leaving the step out
            else:
                parameter.grad = None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            now = time.monotonic()
            logs["data_wait"] = round(self.waited / max(now - self.logged_at, 1e-9), 4)
            self.waited, self.logged_at = 0.0, now
        super().log(logs, start_time)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        # A step whose rows were all skipped has no supervised token; its loss is 0 / 1. Weights may sum up to less.
        if isinstance(num_items_in_batch, torch.Tensor):
            num_items_in_batch = num_items_in_batch.where(num_items_in_batch > 0, 1)
        inputs["return_logits"] = False
        if self.loss_weight is not None:
            inputs["loss_weight"] = self.loss_weight
        if shards_parameters(self.args):
            inputs |= equal_calls(inputs["labels"], inputs.get("pixel_values"))
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def floating_point_ops(self, inputs) -> int:
        # As transformers', which counts the weights anew for each micro-batch while the GPU waits.
        return 6 * self._num_weights * inputs["input_ids"].numel()

    @cached_property
    def _num_weights(self) -> int:
        return self.accelerator.unwrap_model(self.model).num_parameters(exclude_embeddings=True)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Measure loss, and scores of answers where they are due; log and return them as eval_loss, eval_CIDEr, …"""
        evaluator, started = self.evaluator, time.monotonic()
        assert evaluator is not None, "transformers evaluates where there is an eval_dataset, which comes with it"
        # As training calls it: DeepSpeed's ZeRO-3 gathers the weights in it. DDP would wait for gradients.
        model = self.model_wrapped if self.is_deepspeed_enabled else self.model
        was_training = model.training
        model.eval()
        metrics = {"eval_loss": evaluator.loss(model, self.args.device, sharded=shards_parameters(self.args))}
        captions, answers = evaluator.due(self.state.global_step, self.state.max_steps)
        if captions or answers:
            # Mixed precision is put around the model's forward, which generating goes past.
            with self.accelerator.autocast():
                metrics |= evaluator.answer_scores(self.chat_model, captions=captions, answers=answers)
        model.train(was_training)
        metrics["eval_runtime"] = round(time.monotonic() - started, 2)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)  # type: ignore[has-type]
        # Answers are not scored every time: what was not measured is not better than what was.
        return {f"eval_{(self.args.metric_for_best_model or 'loss').removeprefix('eval_')}": math.nan} | metrics

    def train(self, *args, **kwargs):
        with weights_only_checkpoints() if self.is_deepspeed_enabled else nullcontext():
            return super().train(*args, **kwargs)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        logger.info("Taking the best checkpoint: %s (%s).", best, self.state.best_metric)
        if self.is_deepspeed_enabled:
            super()._load_best_model()
        else:  # transformers would not find what --save_full_model True has saved of a model with LoRA
            self._load_from_checkpoint(best)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        own = self.accelerator.unwrap_model(self.model)
        if self.is_deepspeed_enabled and isinstance(own, PeftModel) and not self.output.writes_adapter(own):
            # ZeRO-3 has gathered only what trains of a model with LoRA.
            state_dict = self.accelerator.get_state_dict(self.deepspeed)
        if self.args.should_save:
            self.output.save_model(own, output_dir, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        model = model if model is not None else self.model
        if isinstance(self.accelerator.unwrap_model(model), PeftModel):
            load_trained(model, Checkpoint(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save_checkpoint(self, model, trial) -> None:
        # As transformers' own, but written beside and renamed, so that what is there is whole.
        state, step = self.state, self.state.global_step
        self.skipped.saved = self.skipped.gather()
        if state.best_global_step == step:
            state.best_model_checkpoint = str(Path(self.args.output_dir) / f"{PREFIX}{step}")
        with atomic_checkpoint(
            Path(self.args.output_dir),
            step,
            is_main_process=self.args.should_save,
            limit=self.args.save_total_limit,
            keep=state.best_model_checkpoint,
        ) as folder:
            self.save_model(str(folder), _internal_call=True)
            if not self.args.save_only_model:
                self._save_optimizer_and_scheduler(str(folder))
                self._save_scaler(str(folder))
                self._save_rng_state(str(folder))
            if self.args.should_save:
                for callback in (*self.callback_handler.callbacks, self.control):
                    if isinstance(callback, ExportableState):
                        state.stateful_callbacks[type(callback).__name__] = callback.state()
                state.save_to_json(str(folder / TRAINER_STATE_NAME))
