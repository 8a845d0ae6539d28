"""From the z-buffer to a lit image: lights, soft planar shadows, floor patterns and tone mapping."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .backdrop import Room
from .meshes import Mesh
from .rendering import Camera, normals, rasterise

SUPERSAMPLING = 2  # rendered pixels per image pixel and direction
FLOOR, CEILING, LEFT, BACK, RIGHT = range(5)  # the first faces of every scene, in Room.shell's order
NO_SURFACE = -1
TEXEL = 0.03  # metres of wall or floor per shadow-map pixel
# Each shadow-receiving surface: the axis it is perpendicular to and the two axes its shadow map spans.
SURFACE_AXES = {FLOOR: (2, 0, 1), LEFT: (0, 1, 2), BACK: (1, 0, 2), RIGHT: (0, 1, 2)}
EXPOSURE = 1.0
TONE_STEPS, TONE_RANGE = 4096, 4.0  # entries of the tone curve and the largest linear light it covers
_RANGE = np.linspace(0.0, TONE_RANGE, TONE_STEPS)
# A soft shoulder just below white, then the display's gamma curve.
TONE_CURVE = np.round(255 * (_RANGE / (1 + _RANGE**5) ** 0.2) ** (1 / 2.2)).astype(np.uint8)


@dataclass(frozen=True)
class Light:
    """A point light: its strength halves in ``reach`` metres."""

    position: np.ndarray
    colour: np.ndarray
    reach: float


def room_lights(room: Room, main: np.ndarray) -> list[Light]:
    """The shadow-casting main light under the ceiling first, then the window's and the lamps' light."""
    lights = [Light(main, np.array([1.0, 0.93, 0.82]) * 1.08, 3.0)]
    if room.window is not None:
        lights.append(Light(room.window, np.array([0.8, 0.9, 1.0]) * 0.55, 1.6))
    for centre in room.lamps:
        lights.append(Light(centre, np.array([1.0, 0.76, 0.46]) * 0.9, 0.8))
    return lights


def _surface_of(quads: np.ndarray, room: Room, details: int) -> np.ndarray:
    """The room surface each face lies flat on (rugs and images included), ``NO_SURFACE`` for furniture.

    Only the first ``details`` faces belong to the room.
    """
    surface = np.full(len(quads), NO_SURFACE)
    level = {FLOOR: 0.0, LEFT: 0.0, BACK: room.depth, RIGHT: room.width}
    for number, (axis, _, _) in SURFACE_AXES.items():
        flat = (np.abs(quads[:details, :, axis] - level[number]) < 0.06).all(axis=1)
        surface[:details][flat] = number
    return surface


def shadow_map(quads: np.ndarray, light: np.ndarray, surface: int, room: Room) -> np.ndarray:
    """Fraction of the main light (0..1) that reaches a room surface past the furniture, on a TEXEL grid."""
    axis, u, v = SURFACE_AXES[surface]
    extent = (room.width, room.depth, room.height)
    size = int(extent[u] / TEXEL) + 1, int(extent[v] / TEXEL) + 1
    level = extent[axis] if surface in (BACK, RIGHT) else 0.0
    to_wall = level - light[axis]
    towards = (quads[..., axis] - light[axis]) * np.sign(to_wall)
    # A solid's lit faces alone cast its whole shadow.
    lit = np.einsum("fk,fk->f", normals(quads), light - quads[:, 0]) > 0
    casting = lit & (towards > 0.15).all(axis=1)
    stretch = abs(to_wall) / np.where(casting[:, None], towards, 1.0)
    flat = light[[u, v]] + (quads[..., [u, v]] - light[[u, v]]) * stretch[..., None]
    image = Image.new("L", size, 255)
    draw = ImageDraw.Draw(image)
    for outline in flat[casting] / TEXEL:
        draw.polygon(outline.ravel().tolist(), fill=85)
    image = image.filter(ImageFilter.GaussianBlur(0.09 / TEXEL))
    return np.asarray(image, dtype=np.float32) / 255


def contact_map(quads: np.ndarray, room: Room) -> np.ndarray:
    """Darkening of the floor (0..1) right under and around what stands on it, on a TEXEL grid."""
    image = Image.new("L", (int(room.width / TEXEL) + 1, int(room.depth / TEXEL) + 1), 255)
    draw = ImageDraw.Draw(image)
    for outline in quads[(quads[..., 2] < 0.36).all(axis=1)][..., :2] / TEXEL:
        draw.polygon(outline.ravel().tolist(), fill=70)
    return np.asarray(image.filter(ImageFilter.GaussianBlur(0.07 / TEXEL)), dtype=np.float32) / 255


def _sample(grid: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Bilinear look-up of a (v, u) grid at positions in metres."""
    x = np.clip(u / TEXEL - 0.5, 0, grid.shape[1] - 1.001).astype(np.float32)
    y = np.clip(v / TEXEL - 0.5, 0, grid.shape[0] - 1.001).astype(np.float32)
    column, row = x.astype(np.int32), y.astype(np.int32)
    x -= column
    y -= row
    flat, corner = grid.ravel(), row * grid.shape[1] + column
    upper = flat[corner] * (1 - x) + flat[corner + 1] * x
    corner += grid.shape[1]
    return upper * (1 - y) + (flat[corner] * (1 - x) + flat[corner + 1] * x) * y


def floor_pattern(room: Room, x: np.ndarray, y: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Relative brightness of the floor at (x, y), seen from ``depth`` metres away.

    Seams are averaged over about the area one pixel covers, so that they fade instead of flickering.
    """
    tones = np.random.default_rng(int(room.width * 1e6)).uniform(-1, 1, 4096).astype(np.float32)
    if room.pattern == "carpet":
        return 1 + 0.03 * tones[((x * 40).astype(np.int32) * 61 + (y * 40).astype(np.int32) * 7) % 4096]
    planks = room.pattern == "planks"
    across, along, seam, contrast = (0.15, 1.25, 0.004, 0.1) if planks else (0.42, 0.42, 0.006, 0.035)
    row = np.floor(x / across).astype(np.int32)
    shift = along * (0.5 + 0.5 * tones[row % 4096]) if planks else 0.0
    column = np.floor((y + shift) / along).astype(np.int32)
    pixel = 0.003 * depth  # half the width of a pixel on a surface facing the camera
    joints = _seam(x - row * across, across, seam, pixel)
    joints = np.maximum(joints, _seam(y + shift - column * along, along, seam, pixel * depth * 0.7))
    return 1 + contrast * tones[(row * 37 + column * 11) % 4096] - 0.5 * joints


def _seam(offset: np.ndarray, period: float, half_seam: float, half_pixel: np.ndarray) -> np.ndarray:
    """Share of a pixel taken by the seam at the start and end of each period."""
    gap = np.minimum(offset, period - offset)
    covered = np.minimum(gap + half_pixel, half_seam) - np.maximum(gap - half_pixel, -half_seam)
    return np.clip(covered / (2 * half_pixel), 0, 1)


@dataclass(frozen=True)
class Samples:
    """The surface points to shade: one per pixel inside a face, four per pixel on an edge between faces."""

    faces: np.ndarray  # face number of each sample
    depth: np.ndarray  # metres along the view direction
    places: list[np.ndarray]  # room coordinates x, y, z
    uniform: np.ndarray  # (size, size), true where a pixel has a single sample

    @classmethod
    def of(cls, inverse_depth: np.ndarray, faces: np.ndarray, camera: Camera) -> Samples:
        """Choose the samples of an image rasterised at ``SUPERSAMPLING`` times its size."""
        fine = len(faces)
        size, step = fine // SUPERSAMPLING, SUPERSAMPLING
        inner = np.arange(step)
        offsets = [(i, j) for i in inner for j in inner]
        corner = faces[::step, ::step]
        uniform = np.ones((size, size), dtype=bool)
        for i, j in offsets:
            uniform &= faces[i::step, j::step] == corner
        row, column = np.nonzero(uniform)
        edge_row, edge_column = np.nonzero(~uniform)
        fine_rows = (edge_row[:, None, None] * step + inner[:, None] + 0 * inner).ravel()
        fine_columns = (edge_column[:, None, None] * step + 0 * inner[:, None] + inner).ravel()
        # Inverse depth is linear across a face, so the mean of a uniform pixel is its value at the centre.
        means = sum(inverse_depth[i::step, j::step] for i, j in offsets) / np.float32(step * step)
        inverse = np.concatenate([means[row, column], inverse_depth[fine_rows, fine_columns]])
        depth = 1 / np.maximum(inverse, np.float32(1e-3))
        x = np.concatenate([(column + 0.5) * step, fine_columns + 0.5]).astype(np.float32)
        y = np.concatenate([(row + 0.5) * step, fine_rows + 0.5]).astype(np.float32)
        numbers = np.concatenate([corner[row, column], faces[fine_rows, fine_columns]])
        return cls(numbers, depth, _places(camera, x, y, depth, fine), uniform)


def _places(camera: Camera, column, row, depth: np.ndarray, size: int) -> list[np.ndarray]:
    """Room coordinates x, y, z of the points seen at pixel positions (column, row) at a depth."""
    axes = camera.axes.astype(np.float32)
    scale = np.float32(1 / camera.focal(size))
    across, down = (column - size / 2) * scale, (row - size / 2) * scale
    right, up, forward = axes
    start = camera.position.astype(np.float32)
    return [(forward[k] + across * right[k] - down * up[k]) * depth + start[k] for k in range(3)]


def render(room: Room, backdrop: Mesh, furniture: Mesh, camera: Camera, main: np.ndarray, size: int) -> Image.Image:
    """The lit image of a room.

    ``backdrop`` starts with the room's shell; ``main`` is the position of the shadow-casting light.
    """
    quads = np.concatenate([backdrop.quads, furniture.quads])
    albedo = np.concatenate([backdrop.albedo, furniture.albedo]).astype(np.float32)
    glow = np.concatenate([backdrop.glow, furniture.glow]).astype(np.float32)
    samples = Samples.of(*rasterise(quads, camera, size * SUPERSAMPLING), camera)
    faces, places = samples.faces, samples.places
    surface = _surface_of(quads, room, len(backdrop.quads))[faces]
    shade = _occlusion(room, *places, quads, faces)
    direct, tint = np.ones_like(shade), np.ones_like(shade)
    for number, (_, u, v) in SURFACE_AXES.items():
        here = np.flatnonzero(surface == number)
        shadows = shadow_map(furniture.quads, main, number, room)
        direct[here] = _sample(shadows, places[u][here], places[v][here])
    here = np.flatnonzero(surface == FLOOR)
    shade[here] *= _sample(contact_map(furniture.quads, room), places[0][here], places[1][here])
    here = np.flatnonzero(faces == FLOOR)
    tint[here] = floor_pattern(room, places[0][here], places[1][here], samples.depth[here])
    channels = _illuminate(room_lights(room, main), quads, faces, places, direct, shade)
    self_lit = glow[faces]
    for channel, light in enumerate(channels):
        light *= 1 - self_lit
        light += self_lit
        light *= albedo[:, channel][faces] * tint
    return _develop(channels, samples.uniform)


def _occlusion(room: Room, x, y, z, quads: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Ambient darkening towards the room's edges; a surface does not darken itself."""
    steep = 1 - np.abs(normals(quads)).astype(np.float32) ** 2
    shade = np.ones_like(x)
    for axis, gap, strength in (
        (0, np.minimum(x, room.width - x), 0.28),
        (1, room.depth - y, 0.28),
        (2, np.minimum(z, room.height - z), 0.3),
    ):
        shade *= 1 - (strength * steep[:, axis])[faces] * np.exp(gap * np.float32(-4.0))
    return shade


def _illuminate(lights: list[Light], quads, faces, places, direct, shade) -> list[np.ndarray]:
    """Light arriving at every pixel, one array per colour channel; ``direct`` scales the first light."""
    normal = normals(quads)
    # Light bounced by the room: most from the ceiling, least from below.
    ambient = (0.37 + 0.07 * normal[:, 2] - 0.05 * normal[:, 0]).astype(np.float32)[faces] * shade
    channels = [ambient * np.float32(tone) for tone in (1.0, 0.99, 0.97)]
    for number, light in enumerate(lights):
        height = np.einsum("fk,fk->f", normal, light.position - quads[:, 0])
        offsets = (places[k] - np.float32(light.position[k]) for k in range(3))
        squared = sum(offset * offset for offset in offsets)
        fall = np.sqrt(squared) * (1 + squared * np.float32(1 / light.reach**2))
        strength = np.maximum(height, 0).astype(np.float32)[faces] / np.maximum(fall, 0.05)
        strength *= direct * shade if number == 0 else shade
        for channel, tone in zip(channels, light.colour, strict=True):
            channel += strength * np.float32(tone)
    return channels


def _develop(channels: list[np.ndarray], uniform: np.ndarray) -> Image.Image:
    """Average the samples of each pixel in linear light, then tone-map to 8 bits."""
    image = np.empty((*uniform.shape, 3), dtype=np.uint8)
    single = int(uniform.sum())
    for channel, values in enumerate(channels):
        light = np.empty(uniform.shape, dtype=np.float32)
        light[uniform] = values[:single]
        light[~uniform] = values[single:].reshape(-1, SUPERSAMPLING**2).mean(axis=1)
        level = np.clip(light * (EXPOSURE * (TONE_STEPS - 1) / TONE_RANGE), 0, TONE_STEPS - 1)
        image[..., channel] = TONE_CURVE[level.astype(np.int32)]
    return Image.fromarray(image)
