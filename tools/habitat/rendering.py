"""A perspective camera and a z-buffer rasteriser for convex quads, vectorised per face with numpy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import ceil

import numpy as np

NEAR = 0.05  # metres; geometry closer to the camera plane is clipped away
BACKGROUND = -1  # face number of pixels no face covers


@dataclass(frozen=True)
class Camera:
    """A camera without roll: ``yaw`` turns right from +y, ``pitch`` looks up, ``fov`` is the full angle of
    view across the image (all in radians).
    """

    position: np.ndarray
    yaw: float
    pitch: float
    fov: float

    @cached_property
    def axes(self) -> np.ndarray:
        """Rows: the camera's right, up and forward directions in room coordinates."""
        sin, cos = np.sin(self.yaw), np.cos(self.yaw)
        forward = np.array([sin * np.cos(self.pitch), cos * np.cos(self.pitch), np.sin(self.pitch)])
        right = np.array([cos, -sin, 0.0])
        return np.stack([right, np.cross(right, forward), forward])

    def focal(self, size: int) -> float:
        """Focal length in pixels for a square image of ``size`` pixels."""
        return size / 2 / np.tan(self.fov / 2)

    def to_camera(self, points: np.ndarray) -> np.ndarray:
        """Room coordinates to camera coordinates (right, up, forward)."""
        return (points - self.position) @ self.axes.T

    def project(self, points: np.ndarray, size: int) -> np.ndarray:
        """Pixel coordinates (column, row) of points in front of the camera; pixel centres are at halves."""
        return to_pixels(self.to_camera(points), self.focal(size), size)


def to_pixels(local: np.ndarray, focal: float, size: int) -> np.ndarray:
    """Perspective division of camera coordinates into (column, row) pixel coordinates."""
    scale = focal / local[..., 2]
    return np.stack([size / 2 + local[..., 0] * scale, size / 2 - local[..., 1] * scale], axis=-1)


def normals(quads: np.ndarray) -> np.ndarray:
    """Unit outward normals of (faces, 4, 3) quads, from their diagonals."""
    cross = np.cross(quads[:, 2] - quads[:, 0], quads[:, 3] - quads[:, 1])
    return cross / np.maximum(np.linalg.norm(cross, axis=1, keepdims=True), 1e-12)


def clip_near(polygon: np.ndarray) -> np.ndarray:
    """The part of a polygon (camera coordinates) beyond the near plane; may be empty."""
    kept = []
    for start, end in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if start[2] >= NEAR:
            kept.append(start)
        if (start[2] >= NEAR) != (end[2] >= NEAR):
            kept.append(start + (end - start) * ((NEAR - start[2]) / (end[2] - start[2])))
    return np.array(kept)


def rasterise(quads: np.ndarray, camera: Camera, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the front faces of ``quads`` with a z-buffer.

    Returns the inverse depth (1/metres along the view direction, 0 where empty) and the number of the
    nearest face (``BACKGROUND`` where empty) for every pixel of a ``size`` x ``size`` image.
    """
    inverse_depth = np.zeros((size, size), dtype=np.float32)
    faces = np.full((size, size), BACKGROUND, dtype=np.int16)
    local = camera.to_camera(quads)
    focal = camera.focal(size)
    normal = normals(quads) @ camera.axes.T
    # On the plane n . p = d a viewing ray through (u, v, 1) has inverse depth n . (u, v, 1) / d.
    offset = np.einsum("fk,fk->f", normal, local[:, 0])
    facing = offset < -1e-9
    plane = normal / np.where(facing, offset, 1.0)[:, None]
    step_x = plane[:, 0] / focal
    step_y = -plane[:, 1] / focal
    at_origin = plane[:, 2] - step_x * size / 2 - step_y * size / 2
    gradients = np.stack([step_x, step_y, at_origin], axis=1).tolist()
    in_front = (local[..., 2] >= NEAR).all(axis=1)
    outlines = to_pixels(np.where(in_front[:, None, None], local, 1.0), focal, size)
    edges = _edges(outlines)
    for face in np.flatnonzero(facing & in_front).tolist():
        _fill(outlines[face], edges[face], gradients[face], face, inverse_depth, faces)
    for face in np.flatnonzero(facing & ~in_front & (local[..., 2] >= NEAR).any(axis=1)).tolist():
        outline = to_pixels(clip_near(local[face]), focal, size)
        _fill(outline, _edges(outline), gradients[face], face, inverse_depth, faces)
    return inverse_depth, faces


def _edges(outlines: np.ndarray) -> np.ndarray:
    """For every corner of (..., corners, 2) outlines: columns per row towards the next one, and rows to it."""
    delta = np.roll(outlines, -1, axis=-2) - outlines
    rise = np.where(np.abs(delta[..., 1]) < 1e-9, 0.0, delta[..., 1])
    return np.stack([delta[..., 0] / np.where(rise == 0, 1.0, rise), rise], axis=-1)


def _fill(outline, edges, gradient, face, inverse_depth, faces) -> None:
    """Write a convex outline (its left edges run down the image) where it is nearer than what is there."""
    size = len(faces)
    low, high = outline.min(axis=0).tolist(), outline.max(axis=0).tolist()
    x0, y0 = max(ceil(low[0] - 0.5), 0), max(ceil(low[1] - 0.5), 0)
    x1, y1 = min(ceil(high[0] - 0.5), size), min(ceil(high[1] - 0.5), size)
    if x0 >= x1 or y0 >= y1:
        return
    rows = np.arange(y0 + 0.5, y1)
    slope, rise = edges[:, :1], edges[:, 1]
    crossing = (rows - outline[:, 1:]) * slope
    crossing += outline[:, :1] - 0.5
    # A pixel belongs to the face if its centre lies on or right of the left edges and left of the right.
    first = np.ceil(crossing[rise > 0].max(axis=0, initial=-1.0)).astype(np.int16)
    last = np.ceil(crossing[rise < 0].min(axis=0, initial=size)).astype(np.int16)
    columns = np.arange(x0, x1, dtype=np.int16)
    step_x, step_y, at_origin = gradient
    along = (columns * step_x + 0.5 * step_x).astype(np.float32)
    depth = along + (rows * step_y + at_origin).astype(np.float32)[:, None]
    window = slice(y0, y1), slice(x0, x1)
    nearer = depth > inverse_depth[window]
    nearer &= columns >= first[:, None]
    nearer &= columns < last[:, None]
    np.copyto(inverse_depth[window], depth, where=nearer)
    np.copyto(faces[window], face, where=nearer)
