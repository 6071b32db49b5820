"""From the detections of tiles to those of whole images, in pixels of the original.

    tiles of an image → pairs of detections of one object → groups with at most one detection per tile → boxes

Two detections of one class in neighboring tiles are of the same object if they agree on the region that both
tiles show, or cross it and leave it at opposite sides, as the pieces of an oblique scratch do. A detection
that ends at a border where another tile continues is cut: it says nothing about the other side, so its box is
open there. Without overlap the region is a border line, widened by the tolerance within which a box touches
it; there, two cut boxes agree by how much of the line they share.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import numpy as np
import torch
from numpy.typing import NDArray

from deim.structures import Detections, Placement

MIN_IOU = 0.4
"""Lowest IoU of two boxes of one object within the region that both tiles show. It is low because boxes of a
few pixels may be a pixel or two apart; among neighbors the best agreement decides."""
MIN_COVER = 0.7
"""Lowest share of a cut box, within that region, that the other box covers, since boxes are inexact."""
TOUCH_SHARE = 0.01
"""Distance within which a box touches a border, as a share of the tile's side, at least `TOUCH_PX`: predicted
boxes end a little before the border that cuts the object."""
TOUCH_PX = 2.0
MIN_SCORE_SHARE = 0.25
"""Detections with a lower share of the best score of their object do not shape its box: they are inexact."""
TINY = np.finfo(np.float64).tiny
"""Divisor in place of an area of 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pool:
    """N detections of all T tiles of an image, tile by tile."""

    boxes: NDArray[np.float64]
    """(N, 4) xyxy, pixels of the original, clipped to their tiles."""
    scores: NDArray[np.float64]
    """(N,)"""
    labels: NDArray[np.int64]
    """(N,)"""
    tile: NDArray[np.int64]
    """(N,) number of the tile."""
    windows: NDArray[np.float64]
    """(T, 4) xyxy of the tiles."""
    reach: NDArray[np.float64]
    """(2,) distance in x and in y from which a box touches a border, in pixels."""
    touches: NDArray[np.bool_]
    """(N, 4) whether a box touches each border of its tile that is within the image."""


def merge_tiles(
    detections: Sequence[Detections], placements: Sequence[Placement], *, max_detections: int
) -> Detections:
    """Merge the detections of the tiles of one image, so that each object has one detection.

    Detections of one tile are always of different objects. An object gets the highest score of its
    detections. Its box is the best one that no border cuts, if that covers the cut ones; otherwise the
    smallest box around all of them.

    Args:
        detections: Detections of each tile, boxes clipped to it.
        placements: Placement of each tile, with `tile_xyxy`.
        max_detections: Number of detections to keep.

    Returns:
        Detections with the best score first, for equal scores those of the earlier tile. `queries` are
        numbered through the tiles. The detections of a single input are returned unchanged.
    """
    if len(detections) == 1:
        return detections[0]
    pool = _pool(detections, placements)
    boxes, stays = pool.boxes.copy(), np.ones(len(pool.scores), dtype=np.bool_)
    for members in _group(pool):
        boxes[members[0]] = _box_of(pool, members)
        stays[members[1:]] = False
    kept = np.flatnonzero(stays)
    kept = kept[np.argsort(-pool.scores[kept], kind="stable")][:max_detections]
    chosen = torch.from_numpy(kept)
    queries = torch.cat([item.queries for item in detections])
    num_queries = int(queries.max()) + 1 if len(queries) else 0
    return Detections(
        boxes_xyxy=torch.from_numpy(boxes[kept]).to(detections[0].boxes_xyxy.dtype),
        scores=torch.cat([item.scores for item in detections])[chosen],
        labels=torch.cat([item.labels for item in detections])[chosen],
        queries=(queries + num_queries * torch.from_numpy(pool.tile))[chosen],
    )


def merge_by_image(
    inputs: Iterable[tuple[int, Placement, Detections]], *, max_detections: int
) -> Iterator[tuple[int, Detections]]:
    """Yield the id and the merged detections of each image, as soon as all its tiles are there.

    Args:
        inputs: Id of the image, placement and detections of each input; the tiles of an image follow each
            other.
        max_detections: Number of detections to keep per image.
    """
    for image_id, tiles in groupby(inputs, key=itemgetter(0)):
        _, placements, detections = zip(*tiles, strict=True)
        yield image_id, merge_tiles(detections, placements, max_detections=max_detections)


def _pool(detections: Sequence[Detections], placements: Sequence[Placement]) -> _Pool:
    windows = np.array([placement.tile_xyxy for placement in placements], dtype=np.float64)
    height, width = placements[0].orig_size_hw
    # All tiles of an image have one size.
    reach = np.maximum(TOUCH_PX, TOUCH_SHARE * (windows[0, 2:] - windows[0, :2]))
    tile = np.repeat(np.arange(len(detections)), [len(item.scores) for item in detections])
    boxes = torch.cat([item.boxes_xyxy for item in detections]).double().numpy()
    is_inner = windows != np.array([0, 0, width, height])
    near = np.abs(boxes - windows[tile]) <= np.tile(reach, 2)
    return _Pool(
        boxes=boxes,
        scores=torch.cat([item.scores for item in detections]).double().numpy(),
        labels=torch.cat([item.labels for item in detections]).numpy(),
        tile=tile,
        windows=windows,
        reach=reach,
        touches=near & is_inner[tile],
    )


def _group(pool: _Pool) -> list[list[int]]:
    """Group the detections of each object, best score first, at most one per tile, without single ones."""
    pairs, strengths = _pairs(pool)
    paired = np.unique(pairs).tolist()
    members = {number: [number] for number in paired}
    tiles = {number: 1 << int(pool.tile[number]) for number in paired}
    group_of = {number: number for number in paired}
    # Of equally strong pairs the first; pairs are listed by tile and then by place.
    for first, second in pairs[np.argsort(-strengths, kind="stable")].tolist():
        kept, joined = group_of[first], group_of[second]
        if kept == joined or tiles[kept] & tiles[joined]:
            continue
        for number in members[joined]:
            group_of[number] = kept
        members[kept] += members.pop(joined)
        tiles[kept] |= tiles[joined]
    groups = [group for group in members.values() if len(group) > 1]
    return [sorted(group, key=lambda number: (-pool.scores[number], number)) for group in groups]


def _pairs(pool: _Pool) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Find pairs (P, 2) of detections that may be of one object, and the strength (P,) of each, in (0, 1]."""
    pairs = [np.zeros((0, 2), dtype=np.int64)]
    strengths = [np.zeros(0)]
    starts = np.searchsorted(pool.tile, np.arange(len(pool.windows) + 1))
    for tile, window in enumerate(pool.windows):
        later = np.arange(tile + 1, len(pool.windows))
        low = np.maximum(window[:2], pool.windows[later, :2])
        high = np.minimum(window[2:], pool.windows[later, 2:])
        # Tiles that share only a corner have two neighbors in common, which show more of it.
        meets = (high >= low).all(axis=1) & (high > low).any(axis=1)
        ours = np.arange(starts[tile], starts[tile + 1])
        for other, region in zip(later[meets], np.hstack([low, high])[meets], strict=True):
            theirs = np.arange(starts[other], starts[other + 1])
            left, right, strength = _agreeing(pool, ours, theirs, region)
            pairs.append(np.stack([left, right], axis=1))
            strengths.append(strength)
    return np.concatenate(pairs), np.concatenate(strengths)


def _agreeing(
    pool: _Pool, ours: NDArray[np.int64], theirs: NDArray[np.int64], region: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Find detections of two tiles that agree on the region that both show, and the strength of each pair."""
    wide = region + np.concatenate([-pool.reach, pool.reach])
    ours, theirs = (_reaching(pool, numbers, wide) for numbers in (ours, theirs))
    if not len(ours) or not len(theirs):
        return ours[:0], theirs[:0], np.zeros(0)
    window_ours, window_theirs = pool.windows[pool.tile[ours[0]]], pool.windows[pool.tile[theirs[0]]]
    cut_ours = pool.touches[ours] & _continues_beyond(window_theirs, window_ours)
    cut_theirs = pool.touches[theirs] & _continues_beyond(window_ours, window_theirs)
    open_ours, open_theirs = _open(pool.boxes[ours], cut_ours), _open(pool.boxes[theirs], cut_theirs)
    meets = pool.labels[ours][:, None] == pool.labels[theirs][None]
    for low, high in ((0, 2), (1, 3)):
        meets &= open_ours[:, None, low] < open_theirs[None, :, high]
        meets &= open_theirs[None, :, low] < open_ours[:, None, high]
    left, right = np.nonzero(meets)
    cuts = cut_ours[left], cut_theirs[right]
    iou, cover = _compare(pool.boxes[ours[left]], pool.boxes[theirs[right]], *cuts, region)
    open_iou, open_cover = _compare(open_ours[left], open_theirs[right], *cuts, wide)
    iou, cover = np.maximum(iou, open_iou), np.maximum(cover, open_cover)
    # Where tiles only touch, every box that ends at the border would cross it.
    is_deep = region[2:] - region[:2] > 2 * pool.reach
    # Cut boxes that leave a deep region at opposite sides cross it.
    crosses = np.any(cuts[0] & cuts[1][:, [2, 3, 0, 1]] & np.tile(is_deep, 2), axis=1)
    agrees = (iou >= MIN_IOU) | (cover >= MIN_COVER) | (crosses & (iou > 0))
    left, right = ours[left[agrees]], theirs[right[agrees]]
    agreement = (iou + np.maximum(iou, cover))[agrees] / 2
    return left, right, agreement * np.sqrt(pool.scores[left] * pool.scores[right])


def _open(boxes: NDArray[np.float64], is_cut: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Boxes (n, 4) without an end on the sides (n, 4) where they are cut."""
    return np.where(is_cut, np.array([-np.inf, -np.inf, np.inf, np.inf]), boxes)


def _reaching(pool: _Pool, numbers: NDArray[np.int64], region: NDArray[np.float64]) -> NDArray[np.int64]:
    """Select the detections that reach into a region."""
    boxes = pool.boxes[numbers]
    return numbers[(boxes[:, :2] < region[2:]).all(axis=1) & (boxes[:, 2:] > region[:2]).all(axis=1)]


def _continues_beyond(window: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(4,) whether a tile continues beyond each border of another."""
    return np.concatenate([window[:2] < other[:2], window[2:] > other[2:]])


def _compare(
    boxes_left: NDArray[np.float64],
    boxes_right: NDArray[np.float64],
    cut_left: NDArray[np.bool_],
    cut_right: NDArray[np.bool_],
    region: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """IoU (P,) of pairs of boxes (P, 4) within a region, and the share of a cut one that the other covers."""
    left, right = (_clip(boxes, region) for boxes in (boxes_left, boxes_right))
    shared = np.maximum(
        np.minimum(left[:, 2:], right[:, 2:]) - np.maximum(left[:, :2], right[:, :2]), 0
    ).prod(axis=1)
    area_left, area_right = _area(left), _area(right)
    iou = shared / np.maximum(area_left + area_right - shared, TINY)
    cover_left = np.where(cut_left.any(axis=1), shared / np.maximum(area_left, TINY), 0)
    cover_right = np.where(cut_right.any(axis=1), shared / np.maximum(area_right, TINY), 0)
    return iou, np.maximum(cover_left, cover_right)


def _area(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    area: NDArray[np.float64] = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return area


def _clip(boxes: NDArray[np.float64], region: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.clip(boxes, np.tile(region[:2], 2), np.tile(region[2:], 2))


def _box_of(pool: _Pool, members: Sequence[int]) -> NDArray[np.float64]:
    """(4,) box of an object from its detections, best score first."""
    least = MIN_SCORE_SHARE * pool.scores[members[0]]
    strong = [number for number in members if pool.scores[number] >= least]
    is_cut = pool.touches[strong].any(axis=1)
    boxes = pool.boxes[strong]
    whole, pieces = boxes[~is_cut], boxes[is_cut]
    if len(whole):
        area = _area(pieces)
        shares = _area(_clip(pieces, whole[0])) / np.maximum(area, TINY)
        if ((shares >= MIN_COVER) | (area <= 0)).all():
            return whole[0]
    return np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])
