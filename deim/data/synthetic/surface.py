"""Surfaces, backgrounds and light of the synthetic defect set: everything in an image except the defects.

Gray values are floats in [0, 1]. Lengths are given in `unit`, 1/256 of the image's mean side, so that a scene
looks the same at every size. `light_xy` is the unit vector in the image plane that points towards the light.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from scipy.ndimage import gaussian_filter1d

Floats = NDArray[np.float32]
Points = NDArray[np.float64]
Window = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels, inside the image."""

FINISHES = ("brushed", "rolled", "cast", "machined", "painted")
BACKGROUNDS = ("belt", "rollers", "slotted_table", "foam", "cloth")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """An image without defects, sharp and free of noise."""

    canvas: Floats
    """(H, W, 3) RGB in [0, 1]."""
    surface: Floats
    """(H, W) in [0, 1]: 1 where the inspected surface is seen, 0 on the background."""
    light_xy: tuple[float, float]
    """Unit vector towards the light."""
    is_gray: bool = False
    """Whether defects have no color either."""

    @property
    def unit(self) -> float:
        """1/256 of the mean side, in pixels."""
        return mean_side_unit(self.surface.shape)

    @cached_property
    def region(self) -> Window:
        """The window around the inspected surface, of which there must be some."""
        return mask_window(self.surface > 0.5)

    def cut(self, window: Window) -> Floats:
        """Return a window (h, w, 3) of the canvas, as a view."""
        x0, y0, x1, y1 = window
        return self.canvas[y0:y1, x0:x1]

    def place(self, rng: Generator, half_extent_xy: Points) -> Points:
        """Draw a center (2,) that keeps a defect of this half extent inside the region if it fits at all."""
        low = np.array(self.region[:2]) + 1.1 * half_extent_xy
        high = np.array(self.region[2:]) - 1.1 * half_extent_xy
        middle = (low + high) / 2
        center: Points = rng.uniform(np.minimum(low, middle), np.maximum(high, middle))
        return center

    def window(self, points_xy: Points, margin: float) -> Window:
        """Return the window around points (P, 2 or more) with a margin in pixels, cut to the image."""
        low = np.floor(points_xy[:, :2].min(axis=0) - margin - 2)
        high = np.ceil(points_xy[:, :2].max(axis=0) + margin + 2)
        height, width = self.surface.shape
        x0, y0 = max(int(low[0]), 0), max(int(low[1]), 0)
        return x0, y0, max(min(int(high[0]), width), x0 + 1), max(min(int(high[1]), height), y0 + 1)


def mask_window(mask: NDArray[np.bool_]) -> Window:
    """Return the window around the true pixels of a (H, W) mask, which must have some."""
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1


def mean_side_unit(size_hw: tuple[int, ...]) -> float:
    """Return 1/256 of the image's mean side (the root of its area), in pixels."""
    return math.sqrt(size_hw[0] * size_hw[1]) / 256


def smooth_noise(rng: Generator, size_hw: tuple[int, int], *, cell_px: float) -> Floats:
    """Draw isotropic noise (H, W) with mean near 0 and a standard deviation of 0.7 to 1.

    Independent values are `cell_px` apart; at most 1 gives white noise.
    """
    height, width = size_hw
    if cell_px <= 1:
        return rng.standard_normal(size_hw, dtype=np.float32)
    box = (0.0, 0.0, max(width / cell_px, 1.0), max(height / cell_px, 1.0))
    grid = rng.standard_normal((math.ceil(box[3]) + 1, math.ceil(box[2]) + 1), dtype=np.float32)
    resized = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC, box=box)
    return np.asarray(resized, dtype=np.float32)


def fractal_noise(rng: Generator, size_hw: tuple[int, int], *, cell_px: float, octaves: int) -> Floats:
    """Sum of `octaves` smooth noises, each half as large and half as strong as the one before; (H, W)."""
    total = np.zeros(size_hw, dtype=np.float32)
    for octave in range(octaves):
        scale = 0.5**octave
        total += np.float32(scale) * smooth_noise(rng, size_hw, cell_px=cell_px * scale)
    return total


def streak_noise(
    rng: Generator, size_hw: tuple[int, int], *, angle: float, grain_px: float, length_px: float
) -> Floats:
    """Draw noise (H, W) of mean 0 and deviation 1 with streaks in one direction, as brushing leaves it.

    A streak is `grain_px` thick and `length_px` long; its angle against the x axis is in radians.
    """
    height, width = size_hw
    step_along, step_across = max(length_px / 4, 1.0), max(grain_px / 1.5, 0.7)
    diagonal = math.hypot(height, width)
    rows, cols = math.ceil(diagonal / step_across) + 4, math.ceil(diagonal / step_along) + 4
    grid = gaussian_filter1d(rng.standard_normal((rows, cols), dtype=np.float32), 1.6, axis=1)
    grid = gaussian_filter1d(grid, 0.6, axis=0)
    grid /= grid.std() + np.float32(1e-6)
    cos, sin = math.cos(angle), math.sin(angle)
    to_grid = (
        cos / step_along,
        sin / step_along,
        cols / 2 - (width * cos + height * sin) / 2 / step_along,
        -sin / step_across,
        cos / step_across,
        rows / 2 - (height * cos - width * sin) / 2 / step_across,
    )
    turned = Image.fromarray(grid).transform(
        (width, height), Image.Transform.AFFINE, to_grid, Image.Resampling.BILINEAR
    )
    return np.asarray(turned, dtype=np.float32)


def shifted(field: Floats, light_xy: tuple[float, float], *, reach_px: float) -> Floats:
    """Read a (H, W) field `reach_px` towards the light, rounded; its edge is repeated beyond the frame."""
    dx, dy = (round(part * reach_px) for part in light_xy)
    rows = np.clip(np.arange(field.shape[0]) + dy, 0, field.shape[0] - 1)
    cols = np.clip(np.arange(field.shape[1]) + dx, 0, field.shape[1] - 1)
    return field[rows][:, cols]


def relief(height_field: Floats, light_xy: tuple[float, float], *, reach_px: float) -> Floats:
    """Shading of a height field: positive on slopes that face the light; (H, W)."""
    return height_field - shifted(height_field, light_xy, reach_px=max(reach_px, 1.0))


def make_scene(rng: Generator, size_hw: tuple[int, int], *, has_part: bool) -> Scene:
    """Compose an image without defects: an inspected surface, with or without background, or only that."""
    unit = mean_side_unit(size_hw)
    angle = rng.uniform(0, 2 * math.pi)
    light_xy = (math.cos(angle), math.sin(angle))
    if has_part:
        surface, reflectance = _part(rng, size_hw, unit, light_xy)
    else:
        surface = np.zeros(size_hw, dtype=np.float32)
        reflectance = _background(rng, size_hw, unit, light_xy)
    light, gloss = _lighting(rng, size_hw, light_xy)
    gloss *= 0.3 + 0.7 * surface
    canvas = reflectance * light[..., None]
    canvas += gloss[..., None]
    np.clip(canvas, 0, 1, out=canvas)
    return Scene(canvas=canvas, surface=surface, light_xy=light_xy)


def _part(
    rng: Generator, size_hw: tuple[int, int], unit: float, light_xy: tuple[float, float]
) -> tuple[Floats, Floats]:
    """Surface mask (H, W) and reflectance (H, W, 3) of an inspected part and what it lies on."""
    metal = _metal(rng, size_hw, unit, light_xy)
    if rng.random() < 0.55:
        surface = np.ones(size_hw, dtype=np.float32)
        _add_machine_line(rng, metal, unit)
        _add_print(rng, metal, surface, unit)
        return surface, metal
    surface = _plate_mask(rng, size_hw, unit)
    background = _background(rng, size_hw, unit, light_xy)
    shadow = _blurred(shifted(surface, light_xy, reach_px=unit * rng.uniform(1.5, 4)), 1.5 * unit)
    background *= (1 - 0.55 * shadow)[..., None]
    bevel = relief(_blurred(surface, 0.8 * unit), light_xy, reach_px=unit)
    metal *= (1 + np.float32(rng.uniform(0.3, 0.7)) * bevel)[..., None]
    _add_print(rng, metal, surface, unit)
    _add_screws(rng, metal, surface, unit, light_xy)
    reflectance = background
    reflectance += (metal - background) * surface[..., None]
    return surface, reflectance


def _metal(rng: Generator, size_hw: tuple[int, int], unit: float, light_xy: tuple[float, float]) -> Floats:
    """Reflectance (H, W, 3) of a surface with a random finish, gray and tint."""
    finish = FINISHES[rng.integers(len(FINISHES))]
    grain = max(unit * 0.45, 1.0)
    gray = rng.uniform(0.36, 0.68)
    tint = rng.normal(0, 0.012, 3)
    match finish:
        case "brushed":  # in one direction: fine streaks and longer broad ones
            angle = rng.choice([0.0, math.pi / 2]) + rng.normal(0, 0.15)
            strength = np.float32(rng.uniform(0.025, 0.055))
            fine = streak_noise(rng, size_hw, angle=angle, grain_px=grain, length_px=grain * 45)
            broad = streak_noise(rng, size_hw, angle=angle, grain_px=grain * 6, length_px=grain * 240)
            texture = strength * (fine + 0.5 * broad)
        case "rolled":  # faint long lines, wide bands across them, mill-scale mottling
            angle = rng.choice([0.0, math.pi / 2]) + rng.normal(0, 0.04)
            lines = streak_noise(rng, size_hw, angle=angle, grain_px=grain * 1.5, length_px=grain * 400)
            angle += math.pi / 2
            bands = streak_noise(rng, size_hw, angle=angle, grain_px=grain * 40, length_px=grain * 600)
            mottle = fractal_noise(rng, size_hw, cell_px=grain * 14, octaves=3)
            texture = 0.02 * lines + 0.02 * bands + rng.uniform(0.012, 0.03) * mottle
        case "cast":  # lit grain of several sizes
            height = fractal_noise(rng, size_hw, cell_px=grain * rng.uniform(4, 9), octaves=3)
            patches = smooth_noise(rng, size_hw, cell_px=grain * 60)
            lit = relief(height, light_xy, reach_px=grain)
            texture = rng.uniform(0.03, 0.06) * lit + 0.02 * patches
            gray *= 0.85
        case "machined":
            texture = _machined(rng, size_hw, grain)
        case _:  # paint: faint orange peel and cloudiness
            peel = smooth_noise(rng, size_hw, cell_px=grain * 7)
            clouds = fractal_noise(rng, size_hw, cell_px=grain * 90, octaves=2)
            lit = relief(peel, light_xy, reach_px=grain * 2)
            texture = rng.uniform(0.008, 0.02) * lit + 0.015 * clouds
            tint = rng.normal(0, 0.04, 3)
    color = np.clip(gray * (1 + tint - tint.mean()), 0.1, 0.85).astype(np.float32)
    return (1 + texture)[..., None] * color


def _machined(rng: Generator, size_hw: tuple[int, int], grain: float) -> Floats:
    """Turning or milling marks: arcs around a center far or near; (H, W) around 0."""
    height, width = size_hw
    turn = rng.uniform(0, 2 * math.pi)
    distance = math.hypot(height, width) * rng.uniform(0.35, 1.6)
    x = np.arange(width, dtype=np.float32) - np.float32(width / 2 + distance * math.cos(turn))
    y = np.arange(height, dtype=np.float32) - np.float32(height / 2 + distance * math.sin(turn))
    step = np.float32(0.5)
    rings = (np.hypot(y[:, None], x[None, :]) / step).astype(np.int32)
    count = int(rings.max()) + 1
    radius = np.arange(count, dtype=np.float32) * step
    pitch = grain * rng.uniform(4, 9)
    noise = gaussian_filter1d(rng.standard_normal(count), grain / float(step))
    wide = gaussian_filter1d(rng.standard_normal(count), 6 * grain / float(step))
    profile = 0.5 * np.sin(2 * math.pi * radius / pitch + 3 * wide) + noise / noise.std()
    profile += 0.6 * wide / wide.std()
    marks = (profile * rng.uniform(0.018, 0.035)).astype(np.float32)[rings]
    return marks + np.float32(0.012) * smooth_noise(rng, size_hw, cell_px=grain * 1.5)


def _background(
    rng: Generator, size_hw: tuple[int, int], unit: float, light_xy: tuple[float, float]
) -> Floats:
    """Reflectance (H, W, 3) of what a part lies on; its patterns are unlike every metal finish."""
    height, width = size_hw
    kind = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    x = np.arange(width, dtype=np.float32)[None, :] / np.float32(unit)
    y = np.arange(height, dtype=np.float32)[:, None] / np.float32(unit)
    if rng.random() < 0.5:
        x, y = y, x
    period = rng.uniform(10, 22)
    phase = rng.uniform(0, period)
    grain = smooth_noise(rng, size_hw, cell_px=max(0.6 * unit, 1.0))
    match kind:
        case "belt":
            rib = np.exp(-(((x + phase) % period / period - 0.5) ** 2) * 60)
            gray = 0.16 + 0.10 * rib
            color = (0.9, 1.0, rng.uniform(0.95, 1.15))
        case "rollers":
            period *= 2.2
            across = (x + phase) % period / period * 2 - 1
            gray = 0.06 + 0.38 * np.sqrt(np.clip(1 - (across * 1.15) ** 2, 0, 1))
            color = (1.0, 1.0, 1.02)
        case "slotted_table":
            period *= 1.8
            slot = np.clip(4 - np.abs((x + phase) % period - period / 2) * 2, 0, 1)
            gray = 0.30 - 0.22 * slot
            color = (0.96, 1.0, 0.98)
        case "foam":
            period *= 0.6
            bumps = np.sin(2 * math.pi * x / period) * np.sin(2 * math.pi * y / period)
            lit = relief(bumps.astype(np.float32), light_xy, reach_px=unit)
            gray = 0.17 + 0.05 * lit
            color = (1.0, 1.0, 1.05)
        case _:
            weave = np.sin(2 * math.pi * x / 5) + np.sin(2 * math.pi * y / 5)
            gray = rng.uniform(0.2, 0.5) * (1 + 0.11 * weave)
            color = (rng.uniform(0.8, 1.0), rng.uniform(0.85, 1.0), rng.uniform(0.85, 1.1))
    grainy = gray.astype(np.float32) * (1 + np.float32(0.07) * grain)
    return np.clip(grainy[..., None] * np.asarray(color, dtype=np.float32), 0.02, 0.9)


def _lighting(
    rng: Generator, size_hw: tuple[int, int], light_xy: tuple[float, float]
) -> tuple[Floats, Floats]:
    """Light that multiplies the reflectance and gloss that is added to it, both (H, W) and smooth."""
    height, width = size_hw
    y, x = np.mgrid[-1:1:48j, -1:1:48j]
    light = 1 + rng.uniform(0.05, 0.25) * (x * light_xy[0] + y * light_xy[1]) / math.sqrt(2)
    light *= 1 - rng.uniform(0.0, 0.22) * (x**2 + y**2) / 2
    light *= rng.uniform(0.85, 1.15)
    gloss = np.zeros_like(light)
    for _ in range(int(rng.integers(0, 3))):
        turn, center = rng.uniform(0, math.pi), rng.uniform(-0.9, 0.9)
        across = (x * math.cos(turn) + y * math.sin(turn) - center) / rng.uniform(0.2, 0.6)
        gloss += rng.uniform(0.04, 0.16) * np.exp(-(across**2))
    light_full, gloss_full = (
        np.array(Image.fromarray(field.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC))
        for field in (light, gloss)
    )
    return light_full, gloss_full


def _plate_mask(rng: Generator, size_hw: tuple[int, int], unit: float) -> Floats:
    """Soft-edged mask (H, W) of a plate: a turned rectangle, a disc, or a sheet that leaves the frame."""
    height, width = size_hw
    center = np.array([width, height]) * rng.uniform(0.45, 0.55, 2)
    half = np.array([width, height]) * rng.uniform(0.36, 0.46, 2)
    angle = rng.normal(0, 0.09)
    style = rng.random()
    if style < 0.25:
        theta = np.linspace(0, 2 * math.pi, 120, endpoint=False)
        outline = np.stack([np.cos(theta), np.sin(theta)], axis=1) * min(height, width)
        outline *= rng.uniform(0.4, 0.47)
    else:
        if style < 0.6:
            side = int(rng.integers(2))
            half[side] *= 1.6
            center[side] += rng.choice([-1, 1]) * 0.5 * half[side]
        cut = rng.uniform(0, 0.22) * half.min()
        a, b = half
        corners = [(a - cut, b), (a, b - cut), (a, cut - b), (a - cut, -b)]
        outline = np.array(corners + [(-px, -py) for px, py in corners])
    cos, sin = math.cos(angle), math.sin(angle)
    points = outline @ np.array([[cos, sin], [-sin, cos]]) + center
    image = Image.new("L", (width, height))
    ImageDraw.Draw(image).polygon([(float(px), float(py)) for px, py in points], fill=255)
    soft = image.filter(ImageFilter.BoxBlur(max(0.2 * unit, 0.6)))
    return np.asarray(soft, dtype=np.float32) / np.float32(255)


def _blurred(field: Floats, radius_px: float) -> Floats:
    """Gaussian blur of a (H, W) field in [0, 1], to 1/255; wide ones are made at a lower resolution."""
    height, width = field.shape
    factor = max(int(radius_px / 1.5), 1)
    image = Image.fromarray((field * 255).astype(np.uint8)).reduce(factor)
    image = image.filter(ImageFilter.GaussianBlur(radius_px / factor))
    box = (0.0, 0.0, min(width / factor, image.width), min(height / factor, image.height))
    resized = image.resize((width, height), Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized, dtype=np.float32) / np.float32(255)


def _add_machine_line(rng: Generator, reflectance: Floats, unit: float) -> None:
    """Sometimes a straight faint step that crosses the whole frame: an edge of two passes, not a defect."""
    if rng.random() > 0.15:
        return
    height, width = reflectance.shape[:2]
    turn = rng.choice([0.0, math.pi / 2]) + rng.normal(0, 0.05)
    y, x = np.ogrid[:height, :width]
    across = (x - width * rng.uniform(0.2, 0.8)) * math.cos(turn)
    across = across + (y - height * rng.uniform(0.2, 0.8)) * math.sin(turn)
    step = 1 / (1 + np.exp(-np.clip(across / (0.5 * unit), -30, 30)))
    reflectance *= (1 + rng.choice([-1, 1]) * rng.uniform(0.03, 0.06) * step).astype(np.float32)[..., None]


def _add_print(rng: Generator, reflectance: Floats, surface: Floats, unit: float) -> None:
    """Sometimes a printed mark on the surface: a bar code, a square code or a datum cross."""
    if rng.random() > 0.18:
        return
    mark = _print_mark(rng)
    size = max(round(unit * rng.uniform(16, 26)), 8)
    image = Image.fromarray(mark).resize((size, round(size * mark.shape[0] / mark.shape[1])))
    turned = image.rotate(rng.choice([0, 90, 180]) + rng.normal(0, 4), Image.Resampling.BILINEAR, expand=True)
    ink = np.asarray(turned, dtype=np.float32) / np.float32(255)
    height, width = reflectance.shape[:2]
    rows, cols = min(ink.shape[0], height), min(ink.shape[1], width)
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - cols + 1))
    where = np.s_[top : top + rows, left : left + cols]
    if surface[where].min() < 1:
        return
    strength = np.float32(rng.uniform(0.3, 0.55))
    reflectance[where] *= (1 - strength * ink[:rows, :cols])[..., None]


def _print_mark(rng: Generator) -> NDArray[np.uint8]:
    """Ink of a mark, (h, w) with 255 where printed."""
    match int(rng.integers(3)):
        case 0:
            bars = rng.random(24) < 0.5
            return (np.tile(np.repeat(bars, 4), (32, 1)) * 255).astype(np.uint8)
        case 1:
            code = rng.random((12, 12)) < 0.5
            code[:, 0] = code[-1, :] = True
            return (np.kron(code, np.ones((6, 6))) * 255).astype(np.uint8)
        case _:
            cross = np.zeros((61, 61), dtype=np.uint8)
            cross[28:33, :] = cross[:, 28:33] = 255
            cross[22:39, 22:39] = 0
            return cross


def _add_screws(
    rng: Generator, reflectance: Floats, surface: Floats, unit: float, light_xy: tuple[float, float]
) -> None:
    """Sometimes a few screw heads: bright, domed and slotted, so unlike a hole."""
    if rng.random() > 0.2:
        return
    height, width = surface.shape
    radius = unit * rng.uniform(4, 6)
    for _ in range(int(rng.integers(1, 5))):
        cx, cy = rng.uniform(0, width), rng.uniform(0, height)
        x0, x1 = max(int(cx - 1.3 * radius), 0), min(int(cx + 1.3 * radius) + 2, width)
        y0, y1 = max(int(cy - 1.3 * radius), 0), min(int(cy + 1.3 * radius) + 2, height)
        if surface[y0:y1, x0:x1].min() < 1 or x1 - x0 < 2.4 * radius or y1 - y0 < 2.4 * radius:
            continue
        y, x = np.mgrid[y0:y1, x0:x1]
        u, v = (x - cx) / radius, (y - cy) / radius
        head = np.clip((1 - np.hypot(u, v)) * radius + 0.5, 0, 1)
        ring = np.clip(1 - np.abs(np.hypot(u, v) - 1.06) * 6, 0, 1)
        turn = rng.uniform(0, math.pi)
        slot = np.clip((0.16 - np.abs(u * math.cos(turn) + v * math.sin(turn))) * radius + 0.5, 0, 1) * head
        shade = 1 + head * (0.15 + 0.3 * (u * light_xy[0] + v * light_xy[1])) - 0.35 * ring - 0.5 * slot
        reflectance[y0:y1, x0:x1] *= shade.astype(np.float32)[..., None]
