"""The five defects of the synthetic set.

The classes differ as on real parts: a groove with depth has a dark core and a lit lip on the side away from
the light; a scratch has neither; a dent only bends the light.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Final, Literal, get_args

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from deim.data.synthetic.surface import Floats, Points, Scene, Window, fractal_noise, shifted, smooth_noise

DefectKind = Literal["dent", "crack", "scratch", "hole", "stain"]
DEFECT_KINDS: Final[tuple[DefectKind, ...]] = get_args(DefectKind)
CLASS_NAMES: Final[dict[DefectKind | Literal["normal"], str]] = {
    "normal": "NORMAL",
    "dent": "DEFORMACIONES",
    "crack": "ROTURA_FRACTURA",
    "scratch": "RAYONES_ARANAZOS",
    "hole": "PERFORACIONES",
    "stain": "CONTAMINACION",
}
"""Names of the classes in the annotations, in the order of their ids."""
CATEGORY_IDS: Final = {kind: number for number, kind in enumerate(CLASS_NAMES, start=1)}

Stroke = NDArray[np.float64]
"""(P, 4) points: x, y and half width in pixels, strength in [0, 1]; all run linearly from point to point."""
Patch = tuple[Window, Floats]
"""A window of an image, and what it shows instead: (h, w, 3), RGB in [0, 1]."""


def stroke_cover(strokes: list[Stroke], window: Window) -> Floats:
    """Return the cover (h, w) in [0, 1] of a window: the strength times the covered share of each pixel.

    Where strokes overlap, the stronger one counts.
    """
    left, top, right, bottom = window
    cover = np.zeros((bottom - top, right - left), dtype=np.float32)
    for stroke in strokes:
        for start, end in pairwise((stroke - (left, top, 0, 0)).tolist()):
            _paint_segment(cover, start, end)
    return cover


def _stroke(points_xy: Points, half_widths: Points | float, strengths: Points | float) -> Stroke:
    columns = np.broadcast_arrays(*points_xy.T, half_widths, strengths)
    return np.stack(columns, axis=1)


def _paint_segment(cover: Floats, start: list[float], end: list[float]) -> None:
    """Raise `cover` to that of one straight piece; each end is x, y, half width, strength."""
    (ax, ay, half_a, strength_a), (bx, by, half_b, strength_b) = start, end
    height, width = cover.shape
    margin = max(half_a, half_b) + 1.5
    x0, x1 = max(int(min(ax, bx) - margin), 0), min(math.ceil(max(ax, bx) + margin), width)
    y0, y1 = max(int(min(ay, by) - margin), 0), min(math.ceil(max(ay, by) + margin), height)
    if x1 <= x0 or y1 <= y0:
        return
    # Python floats leave float32 arrays as they are.
    x = np.arange(x0, x1, dtype=np.float32)[None, :] + (0.5 - ax)
    y = np.arange(y0, y1, dtype=np.float32)[:, None] + (0.5 - ay)
    dx, dy = bx - ax, by - ay
    length_sq = max(dx * dx + dy * dy, 1e-6)
    along = np.minimum(np.maximum(x * (dx / length_sq) + y * (dy / length_sq), 0), 1)
    gap = np.hypot(x - along * dx, y - along * dy)
    half = half_a + along * (half_b - half_a)
    piece = np.minimum(np.maximum(half - gap + 0.5, 0), np.minimum(half * 2, 1))
    piece *= strength_a + along * (strength_b - strength_a)
    target = cover[y0:y1, x0:x1]
    np.maximum(target, piece, out=target)


def _draw_scratch(rng: Generator, scene: Scene) -> Patch:
    """Draw one to four long, shallow lines, bright or dark."""
    unit = scene.unit
    length = 256 * unit * rng.uniform(0.2, 0.55)
    angle = _line_angle(rng)
    wobbly = rng.random() < 0.4
    path = _curved_path(rng, length, angle, wobble=unit * (rng.uniform(1.2, 2.4) if wobbly else 0.2))
    path += scene.place(rng, np.ptp(path, axis=0) / 2)
    count = 1 if rng.random() < 0.55 else int(rng.integers(2, 5))
    normal = np.array([-math.sin(angle), math.cos(angle)])
    width = unit * (rng.uniform(1.5, 2.3) if count == 1 else rng.uniform(1.0, 1.5))
    strokes: list[Stroke] = []
    offset = 0.0
    for _ in range(count):
        strokes += _scratch_line(rng, path + offset * normal, normal, width * rng.uniform(0.8, 1.1))
        offset += unit * rng.uniform(2.2, 4.5)
    window = scene.window(np.concatenate(strokes), 2 * unit)
    cover = stroke_cover(strokes, window)
    before = scene.cut(window)
    if rng.random() < 0.4:
        strength = np.float32(rng.uniform(0.35, 0.65))
        after = before + (strength * cover)[..., None] * (np.float32(0.95) - before)
    else:
        after = before * (1 - np.float32(rng.uniform(0.35, 0.75)) * cover)[..., None]
    return window, after


def _scratch_line(rng: Generator, path: Points, normal: Points, width: float) -> list[Stroke]:
    """A furrow along a part of `path`: three hairs beside one another, each uneven and fading at its ends."""
    first = int(rng.integers(0, len(path) // 5))
    last = len(path) - int(rng.integers(0, len(path) // 5))
    hairs = []
    for side in (-1, 0, 1):
        cut = int(rng.integers(0, len(path) // 6)) * abs(side)
        points = path[first + cut : last - cut]
        t = np.linspace(0, 1, len(points))
        taper = np.clip(np.sin(math.pi * t), 0, 1) ** 0.45
        drift = 0.28 * side + 0.1 * gaussian_filter1d(rng.standard_normal(len(points)), 2)
        uneven = gaussian_filter1d(rng.standard_normal(len(points)), 0.8)
        strengths = np.clip(taper * (0.85 - 0.15 * abs(side) + 0.4 * uneven), 0.1, 1)
        points = points + (drift * width)[:, None] * normal
        hairs.append(_stroke(points, width * (0.12 + 0.13 * taper), strengths))
    return hairs


def _draw_crack(rng: Generator, scene: Scene) -> Patch:
    """Draw a jagged gap with a dark core and one lit lip."""
    unit = scene.unit
    length = 256 * unit * rng.uniform(0.2, 0.55)
    angle = _line_angle(rng)
    straight = rng.random() < 0.45
    jag = rng.uniform(0.06, 0.18) if straight else rng.uniform(0.3, 0.55)
    path = _jagged_path(rng, length, angle, jag=jag, piece_px=unit * rng.uniform(4, 9))
    path += scene.place(rng, np.ptp(path, axis=0) / 2)
    width = unit * (rng.uniform(1.2, 1.7) if straight else rng.uniform(1.3, 2.4))
    strokes = [_crack_line(rng, path, width, open_end=rng.random() < 0.3)]
    for _ in range(0 if straight else int(rng.integers(0, 4))):
        root = int(rng.integers(len(path) // 5, max(4 * len(path) // 5, len(path) // 5 + 1)))
        turn = angle + rng.choice([-1, 1]) * rng.uniform(0.45, 1.1)
        twig = _jagged_path(rng, length * rng.uniform(0.1, 0.28), turn, jag=jag, piece_px=5 * unit)
        strokes.append(_crack_line(rng, twig - twig[0] + path[root], 0.65 * width, open_end=True))
    window = scene.window(np.concatenate(strokes), 5 * unit)
    core = stroke_cover(strokes, window)
    lip_px = unit * rng.uniform(0.7, 1.1)
    away = np.array([-scene.light_xy[0], -scene.light_xy[1]])
    lips = [_lip(stroke, away, lip_px) for stroke in strokes]
    lip = np.clip(stroke_cover(lips, window) - core, 0, 1)
    before = scene.cut(window)
    after = before + (np.float32(rng.uniform(0.2, 0.5)) * lip)[..., None] * (np.float32(1.0) - before)
    depth = np.float32(rng.uniform(0.65, 0.95)) * core
    after += depth[..., None] * (np.float32(rng.uniform(0.02, 0.07)) - after)
    return window, after


def _crack_line(rng: Generator, path: Points, width: float, *, open_end: bool) -> Stroke:
    """A crack along `path`: uneven in width, thin at its ends, or wide at the first with `open_end`."""
    t = np.linspace(0, 1, len(path))
    shape = np.clip(np.sin(math.pi * (0.5 + 0.5 * t if open_end else t)), 0, 1) ** 0.5
    uneven = np.clip(1 + 0.3 * rng.standard_normal(len(path)), 0.45, 1.7)
    return _stroke(path, width / 2 * (0.3 + 0.7 * shape) * uneven, np.clip(0.45 + 0.55 * shape, 0, 1))


def _lip(stroke: Stroke, away: Points, lip_px: float) -> Stroke:
    """The edge of a groove on the side `away` from the light, which catches it."""
    step = stroke[:, 2:3] + 0.4 * lip_px
    return _stroke(stroke[:, :2] + step * away, lip_px / 2 + 0.25, stroke[:, 3])


def _draw_hole(rng: Generator, scene: Scene) -> Patch:
    """Draw a round hole, through or blind, with a shaded wall and a rim."""
    unit = scene.unit
    radius = max(256 * unit * rng.uniform(0.028, 0.075), 2.0)
    squeeze, turn = rng.uniform(0.86, 1.0), rng.uniform(0, math.pi)
    center = scene.place(rng, np.full(2, 1.4 * radius))
    window = scene.window(center[None], 1.6 * radius + 2)
    x, y = _offsets(window, center)
    along, across = _turned(x, y, turn)
    distance = np.hypot(along, across / np.float32(squeeze)) / np.float32(radius)
    distance += np.float32(rng.uniform(0.004, 0.016)) * smooth_noise(rng, x.shape, cell_px=0.4 * radius)
    facing = (x * np.float32(scene.light_xy[0]) + y * np.float32(scene.light_xy[1])) / np.float32(radius)
    soft = np.float32(radius / max(0.35 * unit, 0.7))
    inside = np.clip((1 - distance) * soft + 0.5, 0, 1)
    blind = rng.random() < 0.4
    floor = rng.uniform(0.16, 0.26) if blind else rng.uniform(0.02, 0.06)
    # The wall away from the light is lit, the wall under the light lies in its own shadow.
    wall = np.clip(1 - np.abs(distance - 0.86) / 0.16, 0, 1) * np.clip(-facing + 0.1, 0, 1)
    shade = np.clip(0.55 - 0.55 * facing, 0.15, 1) if blind else np.float32(1)
    interior = floor * shade + np.float32(rng.uniform(0.25, 0.5)) * wall
    rim = np.clip(1 - np.abs(distance - 1.08) / rng.uniform(0.08, 0.16), 0, 1) * (1 - inside)
    before = scene.cut(window)
    edge = np.float32(rng.uniform(0.15, 0.4)) * np.clip(facing + 0.25, -0.8, 1) * rim
    after = before * (1 + edge)[..., None]
    after += inside[..., None] * (interior[..., None] - after)
    return window, after


def _draw_dent(rng: Generator, scene: Scene) -> Patch:
    """Draw a dent, a bulge or a bend that shades the unbroken surface."""
    unit = scene.unit
    bend = rng.random() < 0.25
    half = 256 * unit * (rng.uniform(0.16, 0.26) if bend else rng.uniform(0.09, 0.2))
    aspect = rng.uniform(0.3, 0.45) if bend else rng.uniform(0.6, 1.0)
    # A fold is only seen where it lies across the light.
    turn = (
        math.atan2(scene.light_xy[1], scene.light_xy[0]) + math.pi / 2 + rng.normal(0, 0.35)
        if bend
        else rng.uniform(0, 3)
    )
    reach = np.hypot(half * np.array([math.cos(turn), math.sin(turn)]), half * aspect * 0.8)
    center = scene.place(rng, reach)
    window = scene.window(center[None], 1.15 * half + 2)
    x, y = _offsets(window, center)
    warp = smooth_noise(rng, x.shape, cell_px=0.7 * half) * np.float32(0.07 * half)
    along, across = _turned(x + warp, y + warp, turn)
    distance_sq = (along / half) ** 2 + (across / (half * aspect)) ** 2
    if rng.random() < 0.3:
        height = 1 / (1 + np.exp(np.clip((distance_sq - 0.55) * 9, -30, 30)))
    else:
        height = np.clip(1 - distance_sq, 0, 1) ** 2
    slope_y, slope_x = np.gradient(height.astype(np.float32) * np.float32(half * aspect))
    facing = -(slope_x * np.float32(scene.light_xy[0]) + slope_y * np.float32(scene.light_xy[1]))
    facing *= np.float32(rng.choice([-1, 1]) / max(float(np.abs(facing).max()), 1e-6))
    before = scene.cut(window)
    after = before * (1 + np.float32(rng.uniform(0.25, 0.5)) * facing)[..., None]
    gleam = np.clip(facing - np.float32(0.45), 0, 1) ** 2
    after += (np.float32(rng.uniform(0.0, 0.45)) * gleam)[..., None]
    return window, after


def _draw_contamination(rng: Generator, scene: Scene) -> Patch:
    """Draw a stain, an oil smear, a heap of particles or a fiber."""
    style = rng.random()
    if style < 0.68:
        return _draw_stain(rng, scene, oily=style > 0.48)
    return _draw_debris(rng, scene, fiber=style > 0.88)


def _draw_stain(rng: Generator, scene: Scene, *, oily: bool) -> Patch:
    """A translucent blot with an irregular outline and a darker rim, or an oil film with a faint sheen."""
    unit = scene.unit
    half = 256 * unit * rng.uniform(0.07, 0.18)
    aspect, turn = rng.uniform(0.5, 1.0), rng.uniform(0, math.pi)
    center = scene.place(rng, np.full(2, half))
    window = scene.window(center[None], 1.7 * half + 2)
    x, y = _offsets(window, center)
    along, across = _turned(x, y, turn)
    lumps = fractal_noise(rng, x.shape, cell_px=0.9 * half, octaves=2 if oily else 4)
    depth = 1 - np.hypot(along, across / np.float32(aspect)) / np.float32(half) + np.float32(0.28) * lumps
    depth -= np.clip(np.hypot(x, y) / np.float32(1.4 * half) - 0.75, 0, None) * 4
    cover = np.clip(depth / np.float32(rng.uniform(0.12, 0.45)), 0, 1)
    cover *= cover * (3 - 2 * cover)
    rim = np.clip(1 - np.abs(depth - 0.12) / 0.12, 0, 1)
    before = scene.cut(window)
    if oily:
        filter_rgb = np.array([0.5, 0.47, 0.42]) * rng.uniform(0.85, 1.25)
        sheen = np.sin(depth * 6 + rng.uniform(0, 6))[..., None] * np.array([0.012, 0.0, -0.012]) + 0.02
        after = before * (1 - cover[..., None] * (1 - filter_rgb)) + sheen * cover[..., None]
        after += (0.18 * rim * cover)[..., None]
    else:
        dyes = np.array([[0.5, 0.36, 0.22], [0.35, 0.33, 0.32], [0.62, 0.36, 0.2], [0.42, 0.42, 0.3]])
        dye = dyes[rng.integers(len(dyes))] * rng.uniform(0.85, 1.15)
        blotch = np.clip(0.8 + 0.2 * lumps + 0.25 * rim, 0.45, 1.1) * cover * rng.uniform(0.55, 0.95)
        after = before * (1 - blotch[..., None] * (1 - dye))
    return window, after


def _draw_debris(rng: Generator, scene: Scene, *, fiber: bool) -> Patch:
    """Foreign bodies that cast a small shadow on the surface: grains and chips, or one curled fiber."""
    unit = scene.unit
    strokes = _fiber(rng, unit) if fiber else _grains(rng, unit)
    points = np.concatenate(strokes)[:, :2]
    middle = (points.max(axis=0) + points.min(axis=0)) / 2
    move = scene.place(rng, np.ptp(points, axis=0) / 2) - middle
    window = scene.window(points + move, 5 * unit)
    cover = stroke_cover([stroke + np.array([*move, 0, 0]) for stroke in strokes], window)
    shadow = shifted(cover, scene.light_xy, reach_px=max(0.9 * unit, 1.0))
    colors = np.array(
        [[0.1, 0.09, 0.09], [0.24, 0.17, 0.11], [0.17, 0.2, 0.3], [0.4, 0.2, 0.14], [0.86, 0.84, 0.78]]
    )
    shade = np.clip(1 + 0.3 * smooth_noise(rng, cover.shape, cell_px=2.5 * unit), 0.5, 1.3)
    body = shade[..., None] * colors[rng.integers(len(colors))]
    before = scene.cut(window)
    after = before * (1 - 0.45 * shadow)[..., None]
    after += (0.92 * cover)[..., None] * (body - after)
    return window, after


def _grains(rng: Generator, unit: float) -> list[Stroke]:
    """A scatter of short thick strokes around the origin, dense in the middle."""
    spread = 256 * unit * rng.uniform(0.05, 0.11) * rng.uniform(0.6, 1.0, 2)
    strokes = []
    for _ in range(int(rng.integers(14, 40))):
        center = np.clip(rng.standard_normal(2), -1.9, 1.9) * spread
        size = unit * rng.uniform(0.8, 2.4)
        tips = center + size * 0.7 * rng.standard_normal((3, 2))
        strokes.append(_stroke(tips, size / 2, 1.0))
    return strokes


def _fiber(rng: Generator, unit: float) -> list[Stroke]:
    """A strongly curled hair around the origin, unlike any straight line."""
    count = 60
    bends = np.interp(np.linspace(0, 1, count), np.linspace(0, 1, 7), rng.normal(0, 0.13, 7))
    heading = np.cumsum(bends + rng.choice([-1, 1]) * 0.07) + rng.uniform(0, 2 * math.pi)
    steps = np.stack([np.cos(heading), np.sin(heading)], axis=1) * 256 * unit * rng.uniform(0.3, 0.55) / count
    return [_stroke(np.cumsum(steps, axis=0), unit * rng.uniform(0.5, 0.75), 1.0)]


def _line_angle(rng: Generator) -> float:
    """A direction in radians; mostly oblique, so that few boxes are slivers."""
    return float(rng.choice([-1, 1]) * np.clip(rng.normal(math.pi / 4, 0.35), 0.12, math.pi / 2 - 0.12))


def _curved_path(rng: Generator, length: float, angle: float, *, wobble: float) -> Points:
    """(40, 2) points of an arc around the origin, drawn by a hand that strays by `wobble` pixels."""
    t = np.linspace(-0.5, 0.5, 40)
    stray = gaussian_filter1d(rng.standard_normal(40), 2.5)
    across = rng.normal(0, 0.06) * length * (1 - 4 * t**2) + wobble * stray / stray.std()
    return _rotated(np.stack([t * length, across], axis=1), angle)


def _jagged_path(rng: Generator, length: float, angle: float, *, jag: float, piece_px: float) -> Points:
    """(P, 2) points of a zigzag around the origin that starts and ends on its axis.

    `jag` is the typical step across as a share of the step along; P is at least 13.
    """
    pieces = max(math.ceil(length / piece_px), 4)
    knots = np.linspace(-0.5, 0.5, pieces + 1)
    knots[1:-1] += rng.uniform(-0.35, 0.35, pieces - 1) / pieces
    walk = np.cumsum(rng.standard_normal(pieces + 1)) * 0.8
    walk += 0.5 * rng.standard_normal(pieces + 1)
    walk -= np.interp(knots, knots[[0, -1]], walk[[0, -1]])
    along = np.linspace(-0.5, 0.5, 3 * pieces + 1)
    along[1:-1] += rng.uniform(-0.3, 0.3, 3 * pieces - 1) / (3 * pieces)
    across = np.interp(along, knots, walk) + 0.22 * rng.standard_normal(3 * pieces + 1)
    return _rotated(np.stack([along * length, across * jag * length / pieces], axis=1), angle)


def _rotated(points: Points, angle: float) -> Points:
    """Points (P, 2) turned around the origin by `angle` radians."""
    cos, sin = math.cos(angle), math.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])


def _turned(x: Floats, y: Floats, angle: float) -> tuple[Floats, Floats]:
    """Coordinates along and across a direction, from coordinates along x and y."""
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return x * cos + y * sin, y * cos - x * sin


def _offsets(window: Window, center_xy: Points) -> tuple[Floats, Floats]:
    """Pixel coordinates x and y of a window, both (h, w), relative to a center."""
    x0, y0, x1, y1 = window
    x = np.arange(x0, x1, dtype=np.float32) + np.float32(0.5 - center_xy[0])
    y = np.arange(y0, y1, dtype=np.float32) + np.float32(0.5 - center_xy[1])
    grid_y, grid_x = np.meshgrid(y, x, indexing="ij")
    return grid_x, grid_y


DRAW: Final[dict[DefectKind, Callable[[Generator, Scene], Patch]]] = {
    "dent": _draw_dent,
    "crack": _draw_crack,
    "scratch": _draw_scratch,
    "hole": _draw_hole,
    "stain": _draw_contamination,
}


def draw_defect(rng: Generator, kind: DefectKind, scene: Scene) -> Patch:
    """Draw one defect at a random place of the surface, inside it if it fits.

    Returns:
        The changed window; beyond the defect its pixels equal the canvas of the scene, which is not changed.
    """
    window, pixels = DRAW[kind](rng, scene)
    if scene.is_gray:
        pixels = pixels[..., 1:2].repeat(3, axis=2)
    return window, np.clip(pixels, 0, 1).astype(np.float32)
