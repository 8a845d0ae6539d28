"""The page of a run: OUTPUT_DIR/run.html, one file without a server, kept up to date while the training goes on."""

import base64
import io
import logging
import math
import os
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from transformers import TrainerCallback

from internvl.data.media import read_image
from internvl.train.memory import GIB, MemoryPlan, peak_bytes
from internvl.train.validation import Evaluator, SampleAnswer

PAGE = "run.html"
EVERY = 10.0  # seconds between two states of the page
MAX_POINTS = 300  # of a curve; more are averaged
MAX_SAMPLES, MAX_EVALUATIONS, MAX_WARNINGS = 6, 6, 20
THUMBNAIL_PX = 160
WIDTH, HEIGHT = 600, 170  # of a chart, in units of its SVG
CURVES = {
    "loss": "Loss (nats per supervised token)",
    "reward": "Reward of the samples",
    "grad_norm": "Gradient norm",
    "learning_rate": "Learning rate",
    "data_wait": "Share of time spent waiting for data",
    "eval_CIDEr": "CIDEr of held-out rows",
    "eval_accuracy": "Accuracy of held-out rows",
}
MANY, FEW = 30, 3  # logged steps, and evaluations, that it takes to say something about a curve
WAITS, GROWS, RISES = 0.3, 10.0, 1.05


@dataclass(frozen=True)
class Line:
    """A curve in a chart: SVG points, and the last value."""

    name: str
    points: str
    last: float


@dataclass(frozen=True)
class Chart:
    """Curves over the steps, with the range of both axes."""

    title: str
    lines: list[Line]
    low: float
    high: float
    first: int
    last: int


@dataclass
class Page:
    """What a page is made of, besides the log: the run's command and plan, what was said, and answers so far."""

    title: str
    command: str
    plan: MemoryPlan | None
    started: float = field(default_factory=time.time)
    first_step: int = 0
    rows_per_step: int = 0
    device: torch.device = torch.device("cpu")
    warnings: list[str] = field(default_factory=list)
    samples: dict[int, list[SampleAnswer]] = field(default_factory=dict)
    thumbnails: dict[int | str, str] = field(default_factory=dict)


def averaged(points: Sequence[tuple[int, float]], most: int = MAX_POINTS) -> list[tuple[float, float]]:
    """Return at most ``most`` points: means of equally many neighbours, steps and values alike."""
    size = math.ceil(len(points) / most) if points else 1
    groups = [points[at : at + size] for at in range(0, len(points), size)]
    return [(statistics.fmean(x for x, _ in group), statistics.fmean(y for _, y in group)) for group in groups]


def make_chart(title: str, curves: dict[str, list[tuple[int, float]]]) -> Chart | None:
    """Return a chart of the finite values of ``curves``, name → (step, value) pairs; None where there are none."""
    finite = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in curves.items()}
    finite = {name: points for name, points in finite.items() if points}
    if not finite:
        return None
    drawn = {name: averaged(points) for name, points in finite.items()}
    steps = [x for points in finite.values() for x, _ in points]
    values = [y for points in drawn.values() for _, y in points]
    low, high, first, last = min(values), max(values), min(steps), max(steps)

    def place(x: float, y: float) -> str:
        across = (x - first) / max(1, last - first)
        up = (y - low) / (high - low) if high > low else 0.5
        return f"{across * WIDTH:.1f},{(1 - up) * HEIGHT:.1f}"

    lines = [
        Line(name, " ".join(place(x, y) for x, y in points), finite[name][-1][1]) for name, points in drawn.items()
    ]
    return Chart(title, lines, low, high, first, last)


def curve(history: Sequence[dict], name: str) -> list[tuple[int, float]]:
    """Return the (step, value) pairs of a logged number."""
    return [(entry["step"], float(entry[name])) for entry in history if name in entry]


def judge_curves(history: Sequence[dict]) -> list[str]:
    """Return what is odd about the curves, and what it may mean; one sentence each."""
    said = []
    losses = [value for _, value in curve(history, "loss")]
    if any(not math.isfinite(loss) for loss in losses):
        said.append("A loss was not a number: its rows are in the log. Lower --learning_rate, or take PRECISION=bf16.")
    if len(losses) >= MANY:
        third = len(losses) // 3
        middle, end = statistics.fmean(losses[third : 2 * third]), statistics.fmean(losses[-third:])
        if end > RISES * middle:
            said.append("The loss rises: the learning rate may be too high, or later rows are of another kind.")
    norms = [value for _, value in curve(history, "grad_norm") if math.isfinite(value)]
    if len(norms) >= MANY and statistics.median(norms[-5:]) > GROWS * statistics.median(norms):
        said.append("Gradients have grown tenfold: look at the rows of these steps, or lower --learning_rate.")
    waits = [value for _, value in curve(history, "data_wait")][-20:]
    if len(waits) >= 10 and statistics.fmean(waits) > WAITS:
        said.append(
            f"The device waits for data {statistics.fmean(waits):.0%} of the time: raise --dataloader_num_workers, or "
            "keep features of images with --vision_cache."
        )
    held_out = curve(history, "eval_loss")
    if len(held_out) >= FEW:
        best_step, best = min(held_out, key=lambda point: point[1])
        if held_out[-1][1] > RISES * best:
            said.append(
                f"The loss of held-out rows was lowest at step {best_step} ({best:.4f}) and rises: the model begins "
                "to learn its rows by heart. --load_best_model_at_end True takes the best checkpoint."
            )
    return said


class RunPage(TrainerCallback):
    """Writes the page whenever something is logged, at most every :data:`EVERY` seconds, and at the end.

    ``folder`` is the output folder, ``evaluator`` has the answers of the last evaluation.
    """

    def __init__(self, folder: Path, *, rows_per_step: int, plan: MemoryPlan | None, evaluator: Evaluator | None):
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        self.file = folder / PAGE
        self.page = Page(folder.name, command, plan, rows_per_step=rows_per_step)
        self.evaluator = evaluator
        self.written = -math.inf
        self.handler = _Collector(self.page.warnings)

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.page.started, self.page.first_step, self.page.device = time.time(), state.global_step, args.device
            logging.getLogger("internvl").addHandler(self.handler)
            self.write(state, "running")

    def on_log(self, args, state, control, **kwargs):
        if state.is_world_process_zero and time.monotonic() - self.written >= EVERY:
            self.write(state, "running")

    def on_evaluate(self, args, state, control, **kwargs):
        if not state.is_world_process_zero or self.evaluator is None:
            return
        if self.evaluator.samples:
            self.page.samples[state.global_step] = self.evaluator.samples[:MAX_SAMPLES]
            for step in sorted(self.page.samples)[:-MAX_EVALUATIONS]:
                del self.page.samples[step]
        self.write(state, "running")

    def on_train_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            logging.getLogger("internvl").removeHandler(self.handler)
            self.write(state, "finished" if state.global_step >= state.max_steps else "stopped")

    def write(self, state, status: str) -> None:
        """Write the page beside and rename it; a disk that is full takes the page, not the training."""
        beside = self.file.with_name(f".{PAGE}.partial")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(render(self.page, state, status), encoding="utf-8", errors="backslashreplace")
            os.replace(beside, self.file)
        except OSError as error:
            logging.getLogger(__name__).debug("%s could not be written: %s", self.file, error)
        self.written = time.monotonic()


class _Collector(logging.Handler):
    """Keeps the last warnings."""

    def __init__(self, kept: list[str]):
        super().__init__(logging.WARNING)
        self.kept = kept

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(f"{time.strftime('%H:%M:%S')} {record.getMessage()}")
        del self.kept[:-MAX_WARNINGS]


def render(page: Page, state, status: str) -> str:
    """Return the page as HTML.

    Args:
        page: what it is made of.
        state: transformers' TrainerState.
        status: running, finished or stopped.
    """
    history, now = state.log_history, time.time()
    steps = state.global_step - page.first_step
    seconds = (now - page.started) / steps if steps else None
    left = seconds * (state.max_steps - state.global_step) if seconds and status == "running" else None
    charts = []
    for name, title in CURVES.items():
        curves = {name: curve(history, name)}
        if name == "loss":
            curves["held-out loss"] = curve(history, "eval_loss")
        charts.append(make_chart(title, curves))
    evaluations = [entry for entry in history if any(name.startswith("eval_") for name in entry)]
    peak = peak_bytes(page.device) if page.plan else 0
    return _template().render(
        page=page,
        status=status,
        step=state.global_step,
        max_steps=state.max_steps,
        epoch=state.epoch or 0,
        seconds=seconds,
        left=left,
        rows_per_second=page.rows_per_step / seconds if seconds else None,
        elapsed=now - page.started,
        written=time.strftime("%Y-%m-%d %H:%M:%S"),
        written_at=now,
        reload=int(EVERY),
        charts=[chart for chart in charts if chart],
        size=(WIDTH, HEIGHT),
        evaluations=evaluations[-MAX_EVALUATIONS:],
        remarks=judge_curves(history),
        peak=peak / GIB,
        planned=page.plan.total / GIB if page.plan else 0,
        sample_steps=sorted(page.samples),
        samples=_sample_rows(page),
    )


def _sample_rows(page: Page) -> list[dict]:
    """Return a row for each question: its picture, what people say, and the answers of each evaluation."""
    rows = []
    for number, sample in enumerate(page.samples[max(page.samples)] if page.samples else []):
        if sample.image and sample.id not in page.thumbnails:
            page.thumbnails[sample.id] = _thumbnail(sample.image)
        answers = [page.samples[step][number].answer for step in sorted(page.samples)]
        rows.append({"image": page.thumbnails.get(sample.id), "sample": sample, "answers": answers})
    return rows


def _thumbnail(file: Path) -> str:
    """Return a small picture as a data URI."""
    image = read_image(file, str(file), least_size=(2 * THUMBNAIL_PX, 2 * THUMBNAIL_PX))
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _duration(seconds: float | None) -> str:
    """Return ``2 h 05 min``, ``3 min 20 s`` or ``12 s``; a dash for None."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 60} min {whole % 60:02} s" if whole >= 60 else f"{whole} s"


def _template():
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # captions, names and messages come from outside
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = _duration
    environment.filters["number"] = lambda value: f"{value:.4g}"
    return environment.get_template("run_page.html.jinja")
