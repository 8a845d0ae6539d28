"""The report of an evaluation: one HTML file with scores, their spread, and every caption beside its image."""

import base64
import io
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from internvl.data.media import read_image, read_video
from internvl.errors import UserError

THUMBNAIL_PX = 320
"""Longer side of an image in the report."""
MAX_IMAGES = 4
"""Images shown of a row that has more."""
MAX_CARDS = 500
"""Cards in a report unless the caller wants more: about 10 MB."""
_THUMBNAIL_JPEG_QUALITY = 80
_TEMPLATE = "report.html.jinja"
# The histogram's bins are the narrowest of these widths that leave at most _MAX_BINS of them (CIDEr is within 0..10).
_BIN_WIDTHS = (0.05, 0.1, 0.2, 0.25, 0.5, 1.0)
_MAX_BINS = 16


@dataclass(frozen=True)
class ReportRow:
    """One image (or several, or a video, or none) with what was said about it."""

    images: Sequence[Path]
    image_id: int | str
    references: Sequence[str]
    """Captions by people."""
    predictions: Mapping[str, str]
    """Name of the column (a model) -> its caption. One column, or the same several in every row."""
    scores: Mapping[str, float]
    """Scores of this image by name; ``CIDEr`` is shown, ranked and drawn. With several columns, those of the last."""
    video: Path | None = None
    change: float | None = None
    """CIDEr of the last column minus that of the first, to be shown and ranked by, where it is known."""
    question: str = ""
    """What was asked, where rows ask different things."""
    verdict: str = ""
    """What is said of an answer that is right or wrong; cards can be filtered by it."""

    def name(self) -> str:
        """Return the file names of its images or video, for display."""
        return ", ".join(path.name for path in ((self.video,) if self.video else self.images))


@dataclass(frozen=True)
class ReportTable:
    """A table to show below the scores; numbers that are not whole are shown with four digits."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | int | float]]


@dataclass(frozen=True)
class Bin:
    """One bar of the histogram: how many values lie in ``[low, high)``; the last bin has its upper end too."""

    low: float
    high: float
    count: int


@dataclass(frozen=True)
class _Card:
    """A row as the template shows it."""

    row: ReportRow
    images: Sequence["_Image"]
    hidden_images: int
    cider: float | None


@dataclass(frozen=True)
class _Image:
    """A thumbnail: a data URI, and its size in px."""

    source: str
    width: int
    height: int


def write_report(
    path: Path,
    *,
    title: str,
    scores: Mapping[str, float],
    rows: Sequence[ReportRow],
    provenance: Mapping[str, str],
    intervals: Mapping[str, tuple[float, float]] = MappingProxyType({}),
    notes: Sequence[str] = (),
    tables: Sequence[ReportTable] = (),
    figures: Sequence[tuple[str, Path]] = (),
    max_cards: int | None = MAX_CARDS,
) -> None:
    """Write an HTML file that needs no other file and no network.

    Args:
        path: the file to write; its folder is made where needed.
        title: heading and title of the page.
        scores: name -> corpus score.
        rows: the images, in the order that the report starts with.
        provenance: what produced the captions (model, prompt, settings, versions), by name.
        intervals: name of a score -> bounds of its 95 % interval.
        notes: sentences about the scores.
        tables: further tables, such as base, adapter and merged side by side.
        figures: (caption, PNG file) of plots, such as the loss curve.
        max_cards: most images to show, spread evenly from the best to the worst CIDEr; None shows all.

    Raises:
        UserError: an image or figure cannot be read, or the report cannot be written.
    """
    shown = spread_over_scores(rows, max_cards)
    cider = [row.scores["CIDEr"] for row in rows if "CIDEr" in row.scores]
    template = _environment().get_template(_TEMPLATE)
    page = template.render(
        title=title,
        scores=scores,
        intervals=intervals,
        notes=notes,
        provenance=provenance,
        tables=tables,
        figures=[(caption, _data_uri("image/png", _read_bytes(file))) for caption, file in figures],
        bins=histogram(cider),
        mean_cider=statistics.fmean(cider) if cider else None,
        median_cider=statistics.median(cider) if cider else None,
        cards=[_card(row) for row in shown],
        verdicts=[verdict for verdict, _ in Counter(row.verdict for row in shown if row.verdict).most_common()],
        num_rows=len(rows),
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8", errors="backslashreplace")  # captions may have a lone surrogate
    except OSError as err:
        raise UserError(f"{path}: cannot be written: {err.strerror}. Choose another path.") from err


def spread_over_scores(rows: Sequence[ReportRow], max_cards: int | None) -> list[ReportRow]:
    """Return at most `max_cards` rows in their order, evenly spaced in rank of CIDEr, best and worst included."""
    if max_cards is None or len(rows) <= max_cards:
        return list(rows)
    ranked = sorted(range(len(rows)), key=lambda index: rows[index].scores.get("CIDEr", 0.0))
    last_rank, last_card = len(rows) - 1, max(max_cards - 1, 1)
    chosen = {ranked[card * last_rank // last_card] for card in range(max_cards)}
    return [rows[index] for index in sorted(chosen)]


def histogram(values: Sequence[float]) -> list[Bin]:
    """Count values from 0 on in bins of equal, round width; empty for no values.

    >>> [(bin.low, bin.count) for bin in histogram([0.0, 0.04, 0.05, 0.12])]
    [(0.0, 2), (0.05, 1), (0.1, 1)]
    """
    if not values:
        return []
    highest = max(values)
    width = next((width for width in _BIN_WIDTHS if highest / width <= _MAX_BINS), _BIN_WIDTHS[-1])
    # Rounded, so that a value like 0.3 counts as 3 widths of 0.1 although 0.3 / 0.1 is a little less.
    places = [int(round(value / width, 9)) for value in values]
    counts = [0] * (max(places) + 1)
    for place in places:
        counts[place] += 1
    return [Bin(round(k * width, 9), round((k + 1) * width, 9), count) for k, count in enumerate(counts)]


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        # Captions, names and facts come from outside: all that is put into the page is escaped.
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["score"] = lambda value: f"{value:.4f}" if isinstance(value, float) else str(value)
    return environment


def _card(row: ReportRow) -> _Card:
    where = f"image {row.image_id}"
    if row.video:
        thumbnails = [_thumbnail_of(_middle_frame(row.video, where))]
    else:
        thumbnails = [_read_thumbnail(path, where) for path in row.images[:MAX_IMAGES]]
    hidden = len(row.images) - len(thumbnails) if row.images else 0
    return _Card(row, [_image(thumbnail) for thumbnail in thumbnails], hidden, row.scores.get("CIDEr"))


def _image(thumbnail: Image.Image) -> _Image:
    jpeg = io.BytesIO()
    thumbnail.save(jpeg, "JPEG", quality=_THUMBNAIL_JPEG_QUALITY, optimize=True)
    return _Image(_data_uri("image/jpeg", jpeg.getvalue()), thumbnail.width, thumbnail.height)


def _middle_frame(video: Path, where: str) -> Image.Image:
    return read_video(video, lambda info: [info.num_frames // 2], where)[0]


def _read_thumbnail(path: Path, where: str) -> Image.Image:
    """The image's thumbnail in RGB; turned as the model sees it."""
    # A JPEG is decoded at a fraction of its size where that suffices: several times faster.
    upright = read_image(path, where, least_size=(2 * THUMBNAIL_PX, 2 * THUMBNAIL_PX))
    return _thumbnail_of(upright)


def _thumbnail_of(image: Image.Image) -> Image.Image:
    """The image made smaller, its longer side at most `THUMBNAIL_PX`."""
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    return image


def _read_bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as err:
        raise UserError(f"{file}: cannot be read: {err.strerror}. Check the path.") from err


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
