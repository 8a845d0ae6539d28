"""The questions that tell whether a server answers as a checkpoint does, with images made up for them."""

from dataclasses import dataclass

from PIL import Image, ImageDraw

from internvl.data.conversion import CAPTION_PROMPT
from internvl.model.internvl_chat.conversation import Turn

# The name of the image that is this many times as wide as high: it has as many tiles as the limit allows.
STRIP, STRIP_RATIO = "a strip", 24


@dataclass(frozen=True)
class Probe:
    """A question to ask at the server; ``judges_weights`` if its answer is compared, too."""

    name: str
    turns: tuple[Turn, ...]
    images: tuple[Image.Image, ...] = ()
    judges_weights: bool = False


def make_image(size: tuple[int, int], number: int) -> Image.Image:
    """Return a deterministic image of coloured shapes, RGB of (width, height) px."""
    image = Image.new("RGB", size, (40 * number % 200, 90, 200 - 30 * number % 180))
    draw = ImageDraw.Draw(image)
    for index in range(6):
        x, y = size[0] * ((index * 37 + number * 13) % 90) // 100, size[1] * ((index * 53 + number * 29) % 90) // 100
        box = (x, y, x + size[0] // 5, y + size[1] // 4)
        color = (255 - 35 * index, (60 * (index + number)) % 256, (85 * index) % 256)
        (draw.ellipse if index % 2 else draw.rectangle)(box, fill=color)
    return image


def make_probes(image_size: int) -> list[Probe]:
    """Return the questions: texts, a conversation, a system message, images of several shapes, two images."""
    hello, answer = Turn("human", "What do you see in this room?"), Turn("gpt", "A red chair.")
    caption = Turn("human", f"<image>\n{CAPTION_PROMPT}")
    side = image_size
    probes = [
        Probe("a text", (hello,), judges_weights=True),
        Probe("a second turn", (hello, answer, Turn("human", "And beside it?"))),
        Probe("a system message", (Turn("system", "Answer in one word."), hello)),
        Probe(STRIP, (caption,), (make_image((side * STRIP_RATIO // 4, side // 4), 0),)),
        Probe("an image and a second turn", (caption, answer, hello), (make_image((side, side), 1),)),
        Probe(
            "two images",
            (Turn("human", "<image>\n<image>\nWhat is in both?"),),
            (make_image((side, side), 2), make_image((side, side), 3)),
        ),
    ]
    for number, shape in enumerate(((1, 1), (1, 1), (1, 1), (2, 1), (1, 2), (3, 2)), 4):
        image = make_image((side * shape[0] * 2 // 3, side * shape[1] * 2 // 3), number)
        probes.append(Probe(f"an image of {image.width} × {image.height} px", (caption,), (image,), True))
    return probes
