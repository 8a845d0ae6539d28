"""A page that shows rows as the model is trained on them: tiles, the exact prompt, and which tokens are supervised."""

import base64
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader
from PIL import Image

from internvl.data.batch import Sample, sample_weights
from internvl.model.internvl_chat.causal_lm import IGNORE_INDEX
from internvl.model.vision_cache import TiledImage

SHOWN_TILES = 14  # of a row; a page of videos would be too large to open otherwise
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class PreviewRow:
    """A row of training: its place, kind, data set, the sample, and how many tiles each image or frame has."""

    where: str
    kind: str
    dataset: str
    sample: Sample
    num_tiles: tuple[int, ...]


class Span(NamedTuple):
    """Tokens that are shown together: the fewest that spell whole characters, or a run of image tokens.

    ``weight`` is what the loss of each counts; 0 where it is not supervised.
    """

    text: str
    ids: list[int]
    weight: float
    kind: str  # "text", "special" or "image"

    @property
    def is_supervised(self) -> bool:
        """Whether the model learns to write it."""
        return self.weight > 0


def make_spans(sample: Sample, tokenizer, image_token_id: int) -> Iterator[Span]:
    """Yield the tokens of a sample in their order, each of them once."""
    special = set(tokenizer.all_special_ids)
    weights = [round(weight, 6) for weight in sample_weights(sample).tolist()]  # as written, not as float32 has it
    tokens = list(zip(sample.input_ids.tolist(), weights, strict=True))
    for (is_image, is_special, weight), group in itertools.groupby(
        tokens, key=lambda token: (token[0] == image_token_id, token[0] in special, token[1])
    ):
        ids = [index for index, _ in group]
        if is_image:
            yield Span(f"{tokenizer.convert_ids_to_tokens(image_token_id)} × {len(ids)}", ids, weight, "image")
        elif is_special:
            for index in ids:
                yield Span(tokenizer.convert_ids_to_tokens(index), [index], weight, "special")
        else:
            for text, part in _whole_characters(ids, tokenizer):
                yield Span(text, part, weight, "text")


def _whole_characters(ids: list[int], tokenizer) -> Iterator[tuple[str, list[int]]]:
    """Yield (text, ids) of the shortest runs of tokens that spell whole characters.

    Characters unknown to the vocabulary are spelled in bytes, one token each.
    """
    spelled, part = b"", []
    for index in ids:
        piece = tokenizer.convert_ids_to_tokens(index)
        byte = BYTE_TOKEN.fullmatch(piece)
        spelled += bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()
        part.append(index)
        try:
            text = spelled.decode()
        except UnicodeDecodeError:
            continue
        yield text, part
        spelled, part = b"", []
    if part:  # cut inside a character
        yield spelled.decode(errors="replace"), part


def tile_images(images: Sequence[TiledImage]) -> list[str]:
    """Return the tiles of images as PNG data addresses, as many as are shown."""
    addresses = []
    tiled = (image.tiles for image in images if image.tiles is not None)
    for tile in itertools.islice(itertools.chain.from_iterable(tiled), SHOWN_TILES):
        stream = io.BytesIO()
        Image.fromarray(tile.permute(1, 2, 0).contiguous().numpy()).save(stream, "PNG")
        addresses.append("data:image/png;base64," + base64.b64encode(stream.getvalue()).decode())
    return addresses


def _describe_row(row: PreviewRow, tokenizer, image_token_id: int) -> dict:
    """Return what the template shows of a row."""
    tiles = iter(tile_images(row.sample.images))
    noun = "frame" if row.kind == "video" else "image"
    images = [
        {"title": f"{noun} {number}: {count} {'tile' if count == 1 else 'tiles'}", "tiles": shown}
        for number, count in enumerate(row.num_tiles, 1)
        if (shown := list(itertools.islice(tiles, count)))
    ]
    ids, labels = row.sample.input_ids, row.sample.labels
    image_tokens = int((ids == image_token_id).sum())
    return {
        "where": row.where,
        "kind": row.kind,
        "dataset": row.dataset,
        "images": images,
        "hidden_tiles": max(0, sum(row.num_tiles) - SHOWN_TILES),
        "spans": list(make_spans(row.sample, tokenizer, image_token_id)),
        "counts": {
            "tokens": len(ids),
            "of text": len(ids) - image_tokens,
            "of images": image_tokens,
            "supervised": int((labels != IGNORE_INDEX).sum()),
        },
    }


def write_preview(file: Path, rows: Iterable[PreviewRow], tokenizer, *, image_token_id: int) -> None:
    """Write the page: one HTML file that needs nothing else.

    Args:
        file: where to.
        rows: what to show, in this order.
        tokenizer: that of the samples.
        image_token_id: id of ``<IMG_CONTEXT>``; runs of it are shown as one span.
    """
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    described = [_describe_row(row, tokenizer, image_token_id) for row in rows]
    page = environment.get_template("preview.html.jinja").render(rows=described)
    Path(file).write_text(page, encoding="utf-8", errors="backslashreplace")  # file names may not be UTF-8
