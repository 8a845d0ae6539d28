"""The engine of an evaluation that a server generates for: one that runs, or vLLM started for it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from internvl.device import detect_device
from internvl.evaluation.questions import Question, count_tokens
from internvl.inference import vllm
from internvl.inference.client import ServerClient
from internvl.inference.requests import PromptRules
from internvl.inference.server import ServerEngine
from internvl.model.checkpoint import Checkpoint
from internvl.model.loading import load_checkpoint_tokenizer, load_config


def connect(
    checkpoint: Checkpoint, url: str, served_model: str | None, *, max_tiles: int, seed: int = 0
) -> ServerEngine:
    """Return the engine of a server that runs.

    Args:
        checkpoint: what the server has loaded; its prompts and tiles are checked against it.
        url: address of the server.
        served_model: the checkpoint's name there; None for the only one.
        max_tiles: most tiles of an image.
        seed: of sampling.

    Raises:
        UserError: no server answers there, or it has no such model.
    """
    client = ServerClient(url)
    model = client.choose_model(served_model, "--served-model")
    return ServerEngine(
        client,
        model,
        load_config(checkpoint),
        load_checkpoint_tokenizer(checkpoint),
        max_tiles=max_tiles,
        seed=seed,
    )


@contextmanager
def start_vllm(
    checkpoint: Checkpoint,
    questions: Sequence[Question],
    sizes: dict[Path, tuple[int, int]],
    *,
    max_tiles: int,
    num_frames: int,
    max_new_tokens: int,
    precision: str,
    all_devices: bool = False,
    seed: int = 0,
) -> Iterator[ServerEngine]:
    """Start vLLM on a checkpoint, sized for these questions; yields its engine, and ends it at the end.

    Args:
        checkpoint: base, merged model or adapter.
        questions: all that will be asked.
        sizes: (width, height) in px of each image.
        max_tiles: most tiles of an image.
        num_frames: frames of a video.
        max_new_tokens: most tokens of an answer.
        precision: auto, fp32, bf16 or fp16.
        all_devices: spread the model over all devices of the machine.
        seed: of sampling.

    Raises:
        UserError: vLLM is not installed, cannot serve the checkpoint, or does not start.
    """
    config, tokenizer = load_config(checkpoint), load_checkpoint_tokenizer(checkpoint)
    rules = PromptRules(config, tokenizer, max_tiles=max_tiles)
    longest = max(count_tokens(rules, questions, sizes, num_frames), default=1)
    port, (_, best, num_devices) = vllm.free_port(), detect_device()
    command = vllm.serve_command(
        checkpoint,
        port,
        precision=best if precision == "auto" else precision,
        max_tiles=max_tiles,
        max_model_len=longest + max_new_tokens + 64,  # and what opens the answer
        num_images=max((len(question.images) or num_frames for question in questions), default=1),
        num_devices=num_devices if all_devices else 1,
    )
    with vllm.serve(command, port) as client:
        yield ServerEngine(client, vllm.SERVED_NAME, config, tokenizer, max_tiles=max_tiles, seed=seed)
