"""The rasteriser against plain arithmetic, and the ground truth the scenes draw from it."""

import numpy as np
import pytest
from habitat import palette
from habitat.furniture import KINDS, build
from habitat.layout import BOUNDARY_MARGIN, footprints, overlap
from habitat.meshes import box, join
from habitat.rendering import BACKGROUND, NEAR, Camera, clip_near, normals, rasterise
from habitat.rooms import TRIAL_SIZE, describe, sample_scene

SIZE = 64
CAMERA = Camera(np.array([0.2, -0.3, 1.5]), yaw=0.15, pitch=-0.2, fov=1.3)


def cast_rays(quads: np.ndarray, camera: Camera, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Face number and depth per pixel, found by intersecting one viewing ray per pixel with every quad."""
    faces, depths = np.full((size, size), BACKGROUND), np.full((size, size), np.inf)
    right, up, forward = camera.axes
    ramp = (np.arange(size) + 0.5 - size / 2) / (size / 2) * np.tan(camera.fov / 2)
    rays = forward + ramp[None, :, None] * right - ramp[:, None, None] * up
    for face, quad in enumerate(quads):
        normal = np.cross(quad[2] - quad[0], quad[3] - quad[1])
        slant = rays @ normal
        depth = normal @ (quad[0] - camera.position) / np.where(slant < 0, slant, 1.0)
        points = camera.position + depth[..., None] * rays
        inside = (slant < 0) & (depth > NEAR) & (depth < depths)
        for start, end in zip(quad, np.roll(quad, -1, axis=0), strict=True):
            inside &= np.cross(end - start, points - start) @ normal >= 0
        faces[inside], depths[inside] = face, depth[inside]
    return faces, depths


def test_camera_projects_like_plain_perspective():
    camera = Camera(np.array([0.0, 0.0, 1.5]), yaw=0.0, pitch=0.0, fov=np.pi / 2)
    # Half the image is as wide as the distance: 1 m right at 2 m is half-way to the right edge.
    points = np.array([[1.0, 2.0, 1.5], [0.0, 2.0, 2.5], [-3.0, 4.0, 0.5]])
    np.testing.assert_allclose(camera.project(points, 100), [[75, 50], [50, 25], [12.5, 62.5]])


def test_a_box_covers_the_rectangle_its_corners_project_to():
    camera = Camera(np.array([0.0, 0.0, 1.0]), yaw=0.0, pitch=0.0, fov=np.pi / 2)
    inverse_depth, faces = rasterise(box((-0.5, 0.5), (2, 3), (0.5, 1.5), [1, 1, 1]).quads, camera, 128)
    rows, columns = np.nonzero(faces != BACKGROUND)
    # At 2 m, half a metre is a quarter of the half image: 16 of 64 pixels around the centre.
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (48, 79, 48, 79)
    np.testing.assert_allclose(inverse_depth[48:80, 48:80], 0.5, rtol=1e-5)


def test_rasteriser_agrees_with_ray_casting():
    rng = np.random.default_rng(3)
    paint = palette.NAMED_COLOURS["blue"]
    mesh = join([build("chair", "red", rng).placed(0.4, 2.2, 0.7), box((-0.9, 0.9), (2.7, 3.1), (0, 0.8), paint)])
    inverse_depth, faces = rasterise(mesh.quads, CAMERA, SIZE)
    expected, depths = cast_rays(mesh.quads, CAMERA, SIZE)
    assert (faces != BACKGROUND).mean() > 0.05
    # Rounding may decide differently for the few pixel centres that lie exactly on an edge.
    same = faces == expected
    assert same.mean() > 0.999
    hit = same & (faces != BACKGROUND)
    np.testing.assert_allclose(1 / inverse_depth[hit], depths[hit], rtol=1e-4)


@pytest.mark.parametrize("near_first", [True, False])
def test_the_nearer_of_two_overlapping_quads_wins_in_any_order(near_first):
    near = box((-0.2, 0.2), (1.5, 1.6), (1.0, 1.6), [1, 0, 0], faces=("front",))
    far = box((-1.0, 1.0), (2.5, 2.6), (0.5, 2.0), [0, 1, 0], faces=("front",))
    _, faces = rasterise(join([near, far] if near_first else [far, near]).quads, CAMERA, SIZE)
    middle = CAMERA.project(np.array([[0.0, 1.5, 1.3]]), SIZE)[0].astype(int)
    assert faces[middle[1], middle[0]] == (0 if near_first else 1)
    assert (faces == (1 if near_first else 0)).any()


def test_near_clipping_keeps_the_part_in_front():
    polygon = np.array([[-1.0, 0.0, -1.0], [1.0, 0.0, -1.0], [1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]])
    clipped = clip_near(polygon)
    assert len(clipped) == 4
    assert clipped[:, 2].min() == pytest.approx(NEAR)
    assert len(clip_near(polygon - [0, 0, 5])) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_furniture_stands_on_the_floor_with_sound_faces(kind):
    mesh = build(kind, "red", np.random.default_rng(5))
    low, high = mesh.bounds
    assert low[2] == pytest.approx(0.0)
    assert (high - low).max() < 2.3
    np.testing.assert_allclose(np.linalg.norm(normals(mesh.quads), axis=1), 1.0, rtol=1e-6)


@pytest.fixture(scope="module")
def scenes():
    return [sample_scene(seed) for seed in range(60)]


def test_pieces_do_not_stand_in_each_other():
    square = footprints([-0.5, -0.5], [0.5, 0.5], np.array([0.0, 0.9, 1.2]), np.zeros(3), np.array([0.0, 0.0, 0.7]))
    assert overlap(square[0], square[1])
    assert overlap(square[1], square[2])
    turned = footprints([-0.5, -0.5], [0.5, 0.5], np.array([1.3]), np.array([0.0]), np.array([np.pi / 4]))[0]
    assert not overlap(square[0], turned)


def test_scenes_are_described_unambiguously(scenes):
    for scene in scenes:
        centres = [piece.centre_x for piece in scene.mentioned]
        assert 2 <= len(centres) <= 3
        assert centres == sorted(centres)
        assert min(abs(x - edge) for x in centres for edge in (1 / 3, 2 / 3)) >= BOUNDARY_MARGIN
        assert len({piece.kind for piece in scene.pieces}) == len(scene.pieces)


def test_visible_shares_follow_from_ray_casting(scenes):
    for scene in scenes[:4]:
        faces, _ = cast_rays(scene.furniture.quads, scene.camera, 64)
        covered = (faces != BACKGROUND).mean()
        assert sum(piece.visible_share for piece in scene.pieces) == pytest.approx(covered, abs=0.006)


def test_an_occluded_piece_loses_exactly_the_hidden_part():
    camera = Camera(np.array([0.0, 0.0, 1.5]), yaw=0.0, pitch=-0.2, fov=1.3)
    behind = box((-1.0, 0.7), (3.0, 3.4), (0.0, 1.2), [1, 1, 1])
    before = box((0.45, 1.1), (2.0, 2.2), (0.0, 1.0), [1, 1, 1])
    faces, _ = cast_rays(join([behind, before]).quads, camera, TRIAL_SIZE)
    alone, _ = cast_rays(behind.quads, camera, TRIAL_SIZE)
    seen = (faces != BACKGROUND) & (faces < len(behind.quads))
    assert seen.sum() < (alone != BACKGROUND).sum()
    wardrobe, cabinet = describe([("wardrobe", "red"), ("cabinet", "blue")], [behind, before], camera)
    assert wardrobe.visible_share == pytest.approx(seen.mean(), abs=2e-4)
    assert cabinet.visible_share == pytest.approx((faces >= len(behind.quads)).mean(), abs=2e-4)
    assert wardrobe.centre_x == pytest.approx((np.nonzero(seen)[1].mean() + 0.5) / TRIAL_SIZE, abs=2e-3)
    assert (wardrobe.side, cabinet.side) == ("middle", "right")


def test_sides_and_colours_are_roughly_balanced(scenes):
    mentioned = [piece for scene in scenes for piece in scene.mentioned]
    for side in ("left", "middle", "right"):
        assert 0.22 < np.mean([piece.side == side for piece in mentioned]) < 0.45
    for colour in palette.NAMED_COLOURS:
        assert 0.04 < np.mean([piece.colour == colour for piece in mentioned]) < 0.25
    assert {piece.kind for piece in mentioned} == set(KINDS)


def test_images_are_deterministic_and_lit(scenes):
    image = np.asarray(scenes[0].image(96))
    assert np.array_equal(image, np.asarray(sample_scene(0).image(96)))
    assert not np.array_equal(image, np.asarray(scenes[1].image(96)))
    assert 90 < image.mean() < 230
    assert (image == 255).all(axis=2).mean() < 0.1
