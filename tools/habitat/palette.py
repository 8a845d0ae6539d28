"""The named furniture colours and the neutral materials, as linear-light RGB."""

from __future__ import annotations

import numpy as np


def linear(red: int, green: int, blue: int) -> np.ndarray:
    """Linear-light RGB of an 8-bit display colour."""
    return (np.array([red, green, blue]) / 255.0) ** 2.2


# Far enough apart to be told by eye in light and in shade; brown is left to unnamed wooden parts.
NAMED_COLOURS = {
    "red": linear(205, 30, 34),
    "blue": linear(34, 84, 205),
    "green": linear(36, 150, 62),
    "yellow": linear(247, 214, 40),
    "white": linear(242, 242, 240),
    "black": linear(42, 42, 46),
    "orange": linear(242, 122, 18),
    "purple": linear(130, 56, 168),
}

WOOD = linear(120, 84, 56)
DARK_WOOD = linear(84, 60, 44)
METAL = linear(150, 148, 146)
LINEN = linear(236, 233, 226)
SCREEN = linear(18, 20, 26)
SCREEN_GLEAM = linear(52, 58, 70)
SOIL = linear(58, 42, 32)
LEAVES = (linear(58, 124, 52), linear(74, 142, 60), linear(44, 104, 50))
BOOKS = (
    linear(196, 184, 164),
    linear(150, 132, 112),
    linear(112, 96, 84),
    linear(208, 204, 196),
    linear(124, 128, 132),
    linear(168, 150, 122),
)

WALLS = (
    linear(234, 228, 216),
    linear(216, 226, 230),
    linear(222, 230, 216),
    linear(238, 222, 214),
    linear(226, 220, 234),
    linear(238, 232, 208),
    linear(214, 214, 212),
    linear(204, 218, 222),
)
FLOORS = (
    linear(178, 144, 108),
    linear(152, 116, 84),
    linear(196, 168, 134),
    linear(128, 100, 78),
    linear(176, 166, 154),
)
TILES = (linear(206, 200, 190), linear(176, 180, 184), linear(198, 182, 160))
CARPETS = (linear(172, 164, 152), linear(146, 152, 158), linear(166, 150, 138))
RUGS = (linear(178, 160, 140), linear(146, 152, 158), linear(196, 188, 174), linear(128, 122, 122))
TRIM = linear(240, 239, 235)
CEILING = linear(244, 243, 240)
SKY = linear(188, 216, 242)
MEADOW = linear(150, 178, 132)
ART = (
    linear(206, 196, 178),
    linear(132, 148, 158),
    linear(172, 142, 122),
    linear(112, 124, 116),
    linear(222, 214, 198),
)
