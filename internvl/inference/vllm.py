"""Start vLLM on a checkpoint, for as long as an evaluation needs it."""

import ctypes
import importlib.util
import json
import logging
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from internvl.device import detect_device
from internvl.errors import UserError
from internvl.inference.client import ServerClient
from internvl.model.checkpoint import Checkpoint
from internvl.model.export import vllm_rank

logger = logging.getLogger(__name__)
SERVED_NAME = "evaluated"
DTYPE_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
SECONDS_TO_STOP = 20
PR_SET_PDEATHSIG = 1


def vllm_command() -> list[str]:
    """Return how to start vLLM: of this Python's environment, or the first one on the PATH.

    Raises:
        UserError: there is none.
    """
    if importlib.util.find_spec("vllm"):
        return [sys.executable, "-m", "vllm.entrypoints.cli.main"]
    program = shutil.which("vllm")
    if program:
        return [program]
    raise UserError(
        "--engine: vLLM is not installed here, and no program vllm is on the PATH. It pins other versions than the "
        "training, so make an environment of its own (python -m venv ../vllm && ../vllm/bin/pip install vllm) and put "
        "its bin/ on the PATH, or pass --server URL of one that runs (docs/serving.md)."
    )


def serve_command(
    checkpoint: Checkpoint,
    port: int,
    *,
    precision: str,
    max_tiles: int,
    max_model_len: int,
    num_images: int,
    num_devices: int,
) -> list[str]:
    """Return the command that serves a checkpoint under :data:`SERVED_NAME` on this machine only.

    Args:
        checkpoint: base, merged model or adapter.
        port: TCP port of 127.0.0.1.
        precision: fp32, bf16 or fp16.
        max_tiles: most tiles of an image.
        max_model_len: most tokens of a prompt and its answer.
        num_images: most images of a prompt.
        num_devices: devices to spread the model over; 1 for one device or the CPU.

    Raises:
        UserError: vLLM cannot serve it; names the way to merge it.
    """
    if checkpoint.has_embedded_lora:
        raise UserError(
            f"{checkpoint.folder}: has LoRA weights inside, which vLLM does not read. Merge it first: python "
            f"tools/merge_lora.py {checkpoint.folder} MERGED"
        )
    model = checkpoint.base() if checkpoint.is_adapter else checkpoint
    command = [*vllm_command(), "serve", str(model.folder.resolve()), "--host", "127.0.0.1", "--port", str(port)]
    if checkpoint.is_adapter:
        command += ["--enable-lora", "--max-lora-rank", str(vllm_rank(checkpoint))]
        command += ["--lora-modules", f"{SERVED_NAME}={checkpoint.folder.resolve()}"]
    else:
        command += ["--served-model-name", SERVED_NAME]
    command += ["--trust-remote-code", "--trust-request-mm-kwargs"]
    if model.is_published:
        # Not by --mm-processor-kwargs, which vLLM 0.32 hands to the video processor of members with Qwen, too.
        command += ["--hf-overrides", json.dumps({"max_dynamic_patch": max_tiles})]
    command += ["--dtype", DTYPE_NAMES[precision], "--max-model-len", str(max_model_len)]
    command += ["--limit-mm-per-prompt", f'{{"image": {max(1, num_images)}}}']
    if num_devices > 1:
        command += ["--tensor-parallel-size", str(num_devices)]
    if detect_device()[0] == "cpu":
        command += ["--enforce-eager"]
    return command


@contextmanager
def serve(command: list[str], port: int) -> Iterator[ServerClient]:
    """Run a command of :func:`serve_command`; yields a client once it answers, and ends the server at the end.

    Raises:
        UserError: it ended before it answered; shows the end of its log.
    """
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", **os.environ}
    with tempfile.NamedTemporaryFile("w+", prefix="vllm-", suffix=".log", errors="replace") as log:
        logger.info("Starting vLLM (its log is %s).", log.name)
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True, preexec_fn=_end_with_parent
        )
        try:
            client = ServerClient(f"http://127.0.0.1:{port}")
            _wait_until_ready(client, process, command, Path(log.name))
            yield client
        finally:
            stop(process)


def _end_with_parent() -> None:
    """Ask Linux to end this process when its parent dies, however it dies."""
    with suppress(OSError, AttributeError):  # other systems have no such call
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait_until_ready(client: ServerClient, process: subprocess.Popen, command: list[str], log: Path) -> None:
    """Wait until the server that ``command`` started answers; errors as of :func:`serve`."""
    while True:
        try:
            client.models()
            return
        except UserError:  # not yet
            pass
        if process.poll() is not None:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            told = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "no word")
            raise UserError(
                f"vllm serve: ended with status {process.returncode} ({told.strip()[-400:]}). The command was: "
                f"{shlex.join(command)}"
            )
        time.sleep(0.5)


def stop(process: subprocess.Popen) -> None:
    """End a server and all processes it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(SECONDS_TO_STOP)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # workers that did not listen
    process.wait()


def free_port() -> int:
    """Return a TCP port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
