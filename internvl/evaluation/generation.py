"""Answer every question of a set: batched by size, split over processes, kept on disk as it goes."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from internvl.data.video import NUM_FRAMES
from internvl.distributed import gather_lists, rank_and_world_size, shard
from internvl.errors import UserError
from internvl.evaluation.answers import AnswerLog
from internvl.evaluation.datasets import CaptionSet
from internvl.evaluation.questions import Question, count_tokens, read_request
from internvl.inference.requests import AnsweringEngine, Request
from internvl.progress import Progress

# Tokens of a batch, prompts and answers of all beams: 16 images of 7 tiles of the 2B model.
BATCH_TOKENS = 32768


def generate_captions(
    engine: AnsweringEngine,
    data: CaptionSet,
    sizes: dict[Path, tuple[int, int]],
    log: AnswerLog,
    *,
    batch_size: int,
    batch_tokens: int = BATCH_TOKENS,
    num_frames: int = NUM_FRAMES,
    quiet: bool = False,
    **generation,
) -> list[dict]:
    """Return ``{"image_id", "caption"}`` of every question, in the order of the set.

    Each process answers its share of those that are not in ``log`` yet; all return the whole list. A batch holds
    questions of like length, so that little is padded: up to ``batch_size``, and only so many that prompts and answers
    stay within ``batch_tokens``. The longest come first: what does not fit into memory shows at once.

    Args:
        engine: what answers.
        data: the set.
        sizes: (width, height) in px of each image, as ``check_media`` found them.
        log: answers so far, and where new ones go.
        batch_size: most questions at once.
        batch_tokens: most tokens at once, prompts and answers of all beams.
        num_frames: of a video.
        quiet: show no progress.
        generation: settings of transformers' ``generate``.

    Raises:
        UserError: an image or video cannot be read, or a single question does not fit into memory.
    """
    rank, world_size = rank_and_world_size()
    left = [question for question in data.questions if question.id not in log.done]
    lengths = count_tokens(engine, left, sizes, num_frames)
    order = sorted(range(len(left)), key=lambda index: -lengths[index])
    order = list(shard(order, rank, world_size))
    answer_tokens, beams = generation.get("max_new_tokens", 0), generation.get("num_beams", 1)
    batches = _make_batches(
        [(left[index], (lengths[index] + answer_tokens) * beams) for index in order], batch_size, batch_tokens
    )
    bar = Progress(total=len(order), desc="Captioning", unit=" answers", disable=quiet or rank > 0, dynamic_ncols=True)
    with bar:
        for questions, requests in _read_ahead(engine, batches, num_frames):
            answers = answer_batch(engine, requests, **generation)
            log.add({question.id: answer for question, answer in zip(questions, answers, strict=True)})
            bar.update(len(questions))
    captions = {question.id: log.done[question.id] for question in data.questions if question.id in log.done}
    captions = dict(gather_lists(list(captions.items())))
    return [{"image_id": question.id, "caption": captions[question.id]} for question in data.questions]


def _make_batches(
    questions: Sequence[tuple[Question, int]], batch_size: int, batch_tokens: int
) -> list[list[Question]]:
    """Cut (question, its tokens), the longest first, into batches; one too long is a batch of its own."""
    batches: list[list[Question]] = []
    room = 0
    for question, tokens in questions:
        if room == 0:
            # The first of a batch is its longest, to which the others are padded.
            room = max(1, min(batch_size, batch_tokens // max(1, tokens)))
            batches.append([])
        batches[-1].append(question)
        room -= 1
    return batches


def _read_ahead(
    engine: AnsweringEngine, batches: Sequence[list[Question]], num_frames: int
) -> Iterator[tuple[list[Question], list[Request]]]:
    """Yield each batch with its images; those of the next one are read while this one is answered."""

    def read(questions: list[Question]) -> list[Request]:
        return [read_request(engine, question, num_frames) for question in questions]

    with ThreadPoolExecutor(1) as reader:
        upcoming = [reader.submit(read, questions) for questions in batches[:1]]
        for number, questions in enumerate(batches):
            requests = upcoming.pop().result()
            upcoming += [reader.submit(read, following) for following in batches[number + 1 : number + 2]]
            yield questions, requests


def answer_batch(engine: AnsweringEngine, requests: Sequence[Request], **generation) -> list[str]:
    """Answer the requests of a batch; one that does not fit into memory is halved.

    Raises:
        UserError: a single request does not fit.
    """
    try:
        return engine.answer(requests, **generation)
    except torch.OutOfMemoryError as err:
        if len(requests) == 1:
            tiles = sum(len(image) for image in requests[0].images)
            raise UserError(
                f"--max-num: one question with {tiles} tiles does not fit into the device's memory. Lower it, "
                "--num-frames or --num-beams."
            ) from err
    # Outside the handler: until it ends, the error holds on to the memory that is to be freed.
    torch.cuda.empty_cache()
    half = len(requests) // 2
    return [text for part in (requests[:half], requests[half:]) for text in answer_batch(engine, part, **generation)]
