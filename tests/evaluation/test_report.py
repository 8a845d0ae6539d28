"""The HTML report: complete, closed to the network, and safe with whatever a caption holds."""

import base64
import doctest
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from internvl.errors import UserError
from internvl.evaluation import report
from internvl.evaluation.report import ReportRow, ReportTable, histogram, spread_over_scores, write_report

HOSTILE = '</script><script>alert(1)</script><img src="x" onerror="alert(2)"> & \'quoted\' {{ 7 * 7 }}'


class Page(HTMLParser):
    """What the tests look at: every tag with its attributes, and the text outside style and script."""

    def __init__(self, path: Path):
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self._open = ""
        self.feed(self.html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open = tag

    def handle_data(self, data):
        if self._open not in ("style", "script"):
            self.text += data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


def make_image(path: Path, size: tuple[int, int] = (640, 480)) -> Path:
    Image.new("RGB", size, "teal").save(path)
    return path


def row(image_path: Path, image_id: int | str, cider: float | None = 1.0, **predictions: str) -> ReportRow:
    scores = {} if cider is None else {"CIDEr": cider}
    return ReportRow([image_path], image_id, [f"reference of {image_id}"], predictions or {"model": "a dog"}, scores)


def written(path: Path, rows, **changes) -> Page:
    settings = {"title": "Report", "scores": {"CIDEr": 1.0}, "provenance": {"Prompt": "Describe."}}
    write_report(path, rows=rows, **settings | changes)
    return Page(path)


def test_every_card_has_image_caption_references_and_score(coco_mini, tmp_path):
    files = sorted((coco_mini / "images" / "val2017").iterdir())[:6]
    rows = [row(file, int(file.stem), k / 4, caption=f"caption {k}") for k, file in enumerate(files)]
    page = written(tmp_path / "new" / "report.html", rows)
    assert len(page.all("article")) == len(page.all("img")) == 6
    for k, (file, image) in enumerate(zip(files, page.all("img"), strict=True)):
        assert f"caption {k}" in page.text
        assert f"reference of {int(file.stem)}" in page.text
        assert f"CIDEr {k / 4:.3f}" in page.text
        assert file.name in image["alt"]
        assert str(file.parent) not in page.html, "the report shows where the images are on this machine"
        kind, content = image["src"].split(",")
        assert kind == "data:image/jpeg;base64"
        thumbnail = Image.open(io.BytesIO(base64.b64decode(content)))
        assert max(thumbnail.size) == 320
        assert thumbnail.size == (int(image["width"]), int(image["height"]))
        original = Image.open(file)
        assert thumbnail.width / thumbnail.height == pytest.approx(original.width / original.height, rel=0.01)


def test_all_that_comes_from_outside_is_escaped(tmp_path):
    image = make_image(tmp_path / "a.png")
    loss = make_image(tmp_path / "loss.png")
    page = written(
        tmp_path / "report.html",
        [ReportRow([image], HOSTILE, [HOSTILE], {HOSTILE: HOSTILE, "other": HOSTILE}, {"CIDEr": 1.0})],
        title=HOSTILE,
        scores={HOSTILE: 1.0},
        notes=[HOSTILE],
        provenance={HOSTILE: HOSTILE},
        tables=[ReportTable(HOSTILE, [HOSTILE], [[HOSTILE]])],
        figures=[(HOSTILE, loss)],
    )
    assert len(page.all("script")) == 1
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert {attributes["src"][:5] for attributes in page.all("img")} == {"data:"}
    assert page.text.count(HOSTILE) >= 10


def test_report_needs_no_other_file_and_no_network(tmp_path):
    page = written(tmp_path / "report.html", [row(make_image(tmp_path / "a.png"), 1)])
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[^\"]*", "", page.html))
    assert not page.all("link")
    policies = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policies[0].startswith("default-src 'none'; img-src data:;")


def test_sorting_filtering_dark_mode_and_phones_are_provided_for(tmp_path):
    page = written(tmp_path / "report.html", [row(make_image(tmp_path / "a.png"), 1)])
    assert [option["value"] for option in page.all("option")] == ["given", "best", "worst", "id"]
    assert page.all("input")[0]["type"] == "search"
    assert 'addEventListener("input"' in page.html
    assert 'addEventListener("change"' in page.html
    assert "prefers-color-scheme: dark" in page.html
    assert "width=device-width" in page.html
    # Without a script there is nothing to control.
    assert "hidden" in page.all("form")[0]


def test_columns_tables_figures_and_notes(tmp_path):
    image = make_image(tmp_path / "a.png")
    page = written(
        tmp_path / "report.html",
        [row(image, 1, base="a cat", adapter="a brown dog"), row(image, 2, base="", adapter="b")],
        scores={"CIDEr": 0.123456, "Bleu_4": 0.5},
        intervals={"CIDEr": (0.11111, 0.22222)},
        notes=["Only 2 of 3."],
        tables=[ReportTable("Models", ["model", "CIDEr", "images"], [["base", 0.25, 7]])],
        figures=[("Training loss", make_image(tmp_path / "loss.png", (50, 30)))],
    )
    for shown in (
        "base",
        "a cat",
        "adapter",
        "a brown dog",
        "empty",
        "0.1235",
        "Only 2 of 3.",
        "0.2500",
        "0.1111 – 0.2222",
    ):
        assert shown in page.text
    assert "those of adapter" in page.text
    figure = next(image for image in page.all("img") if image["alt"] == "Training loss")
    assert base64.b64decode(figure["src"].split(",")[1]) == (tmp_path / "loss.png").read_bytes()


def test_report_without_any_cider(tmp_path):
    page = written(tmp_path / "report.html", [row(make_image(tmp_path / "a.png"), 1, cider=None)])
    assert not page.all("svg")
    assert page.all("article")[0]["data-cider"] == ""


def test_images_of_any_mode_and_size(tmp_path):
    Image.new("RGBA", (10, 20)).save(tmp_path / "rgba.png")
    Image.new("L", (2000, 10)).save(tmp_path / "grey.jpg")
    page = written(tmp_path / "report.html", [row(tmp_path / "rgba.png", 1), row(tmp_path / "grey.jpg", 2)])
    assert [(image["width"], image["height"]) for image in page.all("img")] == [("10", "20"), ("320", "2")]


def test_large_reports_show_a_spread_of_the_scores(tmp_path):
    image = make_image(tmp_path / "a.png", (4, 4))
    rows = [row(image, number, cider=(number * 7 % 30) / 10) for number in range(30)]
    page = written(tmp_path / "report.html", rows, max_cards=4)
    assert sorted(float(card["data-cider"]) for card in page.all("article")) == [0.0, 0.9, 1.9, 2.9]
    assert "4 of 30 images" in page.text
    assert "mean 1.4500" in page.text, "the histogram counts all images"
    assert spread_over_scores(rows, None) == spread_over_scores(rows, 30) == rows
    assert len(spread_over_scores(rows, 1)) == 1


@pytest.mark.parametrize("highest", [0.0, 0.3, 1.0, 2.5, 10.0])
def test_histogram_counts_every_value_in_few_bins(highest):
    values = [highest * k / 50 for k in range(51)]
    bins = histogram(values)
    assert sum(bar.count for bar in bins) == len(values)
    assert 1 <= len(bins) <= 17
    assert bins[-1].low <= highest < bins[-1].high
    for bar, following in zip(bins, bins[1:], strict=False):
        assert bar.high == following.low


def test_docstring_examples():
    assert doctest.testmod(report).failed == 0


def test_unreadable_image_and_unwritable_report(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    for name, message in (("broken.jpg", "cannot be read as an image"), ("missing.jpg", "there is no such image")):
        with pytest.raises(UserError, match=f"{name}: {message}"):
            written(tmp_path / "report.html", [row(tmp_path / name, 1)])
    with pytest.raises(UserError, match="loss.png: cannot be read"):
        written(tmp_path / "report.html", [], figures=[("Loss", tmp_path / "loss.png")])
    with pytest.raises(UserError, match="cannot be written"):
        written(tmp_path / "broken.jpg" / "report.html", [])


def test_rows_of_several_images_video_and_text(tmp_path):
    images = [make_image(tmp_path / f"{k}.png", (30 + k, 20)) for k in range(6)]
    frames = tmp_path / "frames"
    frames.mkdir()
    for k in range(3):
        make_image(frames / f"frame_{k}.png", (50 + k, 30))
    rows = [
        ReportRow(images, 1, ["r"], {"model": "six"}, {"CIDEr": 1.0}, change=-0.25),
        ReportRow([], 2, ["r"], {"model": "a video"}, {"CIDEr": 2.0}, video=frames, change=0.5),
        ReportRow([], 3, ["r"], {"model": "text"}, {"CIDEr": 0.0}, change=0.0),
    ]
    page = written(tmp_path / "report.html", rows)
    assert [image["width"] for image in page.all("img")] == ["30", "31", "32", "33", "51"]
    assert "1, 2 more images" in page.text and "2, video" in page.text and "3, text" in page.text
    assert "CIDEr 1.000 (-0.250)" in page.text and "CIDEr 2.000 (+0.500)" in page.text
    assert [option["value"] for option in page.all("option")][3:5] == ["gained", "lost"]
