"""The progress line of a training: step, loss, learning rate, rows per second, waiting, time left, evaluation."""

import logging
import time

from transformers import TrainerCallback

from internvl.progress import Progress

logger = logging.getLogger(__name__)

SHOWN_MEASURES = {"eval loss": "eval_loss", "CIDEr": "eval_CIDEr", "accuracy": "eval_accuracy"}


class ProgressLine(TrainerCallback):
    """One line, redrawn in place on a terminal; in a log, a line every 30 seconds."""

    def __init__(self, rows_per_step: int):
        self.rows_per_step = rows_per_step
        self.bar: Progress | None = None
        self.measured = ""

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        self.started, self.first_step = time.monotonic(), state.global_step
        self.bar = Progress(
            total=state.max_steps,
            initial=state.global_step,
            desc="Training",
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5,
            bar_format="{desc}: {n_fmt}/{total_fmt} steps |{bar:20}| {elapsed}<{remaining}{postfix}",
        )

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.bar is None or logs is None:
            return
        measured = [f"{name} {logs[key]:.4f}" for name, key in SHOWN_MEASURES.items() if key in logs]
        if measured:
            self.measured = ", " + ", ".join(measured)
            logger.info("Step %d: %s", state.global_step, ", ".join(measured))
        self.started += logs.get("eval_runtime", 0)  # the rate is that of training alone
        if "loss" not in logs:
            return
        rows = (state.global_step - self.first_step) * self.rows_per_step
        rate = rows / (time.monotonic() - self.started)
        reward = f"reward {logs['reward']:.3f}, " if "reward" in logs else ""
        self.bar.set_postfix_str(
            f"{reward}loss {logs['loss']:.4f}, lr {logs['learning_rate']:.1e}, {rate:.1f} samples/s, "
            f"{logs['data_wait']:.0%} waiting for data{self.measured}",
            refresh=False,
        )

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()
            self.bar = None
