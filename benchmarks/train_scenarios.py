"""What benchmarks/train.py can measure: for each scenario, the rows of its points and the ways that are compared."""

from dataclasses import dataclass, replace

from train_rows import RowShape


@dataclass(frozen=True)
class Point:
    """One place on a scenario's axis: its ``value``, and the rows and per-device batch it stands for."""

    value: int | str
    rows: RowShape
    per_device: int = 4

    def __post_init__(self):
        if self.rows.num_rows % self.per_device:
            raise ValueError(f"{self.value}: {self.rows.num_rows} rows are no multiple of {self.per_device} at once.")


@dataclass(frozen=True)
class Scenario:
    """Points that are measured in the ``ways``; ratios are of the first of these over each other one."""

    description: str
    points: tuple[Point, ...]
    ways: tuple[str, ...] = ("ours", "plain", "hf")


COCO = RowShape()


def scenarios(captions: int, tiles: int) -> dict[str, Scenario]:
    """Return all scenarios; ``captions`` an image and ``tiles`` are those of whatever does not vary them."""
    coco = replace(COCO, captions=captions, tiles=tiles)

    def vary(name: str, values: tuple[int, ...]) -> tuple[Point, ...]:
        return tuple(Point(value, replace(coco, images=2, **{name: value}), per_device=2) for value in values)

    mixed = RowShape(texts=16)
    return {
        "main": Scenario(
            # An image's rows at once, five where the recipe has four: two images are a whole step, minutes a round.
            "captions of COCO's shape",
            (Point("main", replace(coco, images=2), per_device=captions),),
            ways=("ours", "plain", "plain_kept", "hf"),
        ),
        "single": Scenario(
            "one caption an image, one tile", (Point("single", RowShape(images=16, captions=1, tiles=1)),)
        ),
        "cache": Scenario(
            "features of images kept between epochs",
            (Point("cache", replace(coco, images=2), per_device=captions),),
            ways=("second_epoch", "first_epoch", "ours"),
        ),
        "mixed": Scenario(
            f"texts of {mixed.shortest} to {mixed.longest} tokens",
            (Point("mixed", mixed),),
            ways=("packed", "padded", "padded_by_length"),
        ),
        "questions": Scenario(
            "questions about a frame, each with an answer",
            tuple(
                Point(count, replace(coco, images=1, captions=count, own_questions=True), per_device=count)
                for count in (1, 4, 10)
            ),
            ways=("ours", "plain"),
        ),
        "history": Scenario(
            "frames 1 to t of an episode, for t of 1 to 8; one tile a frame",
            (Point(8, replace(coco, images=1, tiles=1, history=8), per_device=8),),
            ways=("ours", "plain"),
        ),
        "captions": Scenario("captions an image", vary("captions", (1, 2, 5, 10))),
        "tiles": Scenario("tiles an image", vary("tiles", (1, 7, 13))),
        "batch": Scenario(
            "rows a device takes at once",
            tuple(Point(rows, replace(coco, images=2), per_device=rows) for rows in (1, 2, captions, 2 * captions)),
        ),
        "length": Scenario("tokens of a caption", vary("caption_tokens", (22, 100, 400))),
    }
