"""PNG and TIFF files of 8 and 16 bits with any number of channels, written from their specifications."""

import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

PNG_COLORS = {1: 0, 2: 4, 3: 2, 4: 6}


def write_png(path: Path, values: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
    """Values (H, W, C); no filter, one chunk of pixels."""
    height, width, channels = values.shape
    bits = 8 * values.dtype.itemsize
    rows = values.astype(values.dtype.newbyteorder(">")).reshape(height, -1)
    pixels = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, bits, PNG_COLORS[channels], 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    path.write_bytes(content)


def write_tiff(
    path: Path,
    values: NDArray[np.uint8] | NDArray[np.uint16],
    *,
    order: Literal["<", ">"] = "<",
    deflate: bool = False,
    predictor: bool = False,
    tile_px: int | None = None,
    rows_a_strip: int = 5,
    tags: dict[int, int | None] | None = None,
) -> None:
    """Values (H, W, C) in strips or square tiles, with other values of `tags`; None leaves one out."""
    height, width, channels = values.shape
    bits = 8 * values.dtype.itemsize
    if tile_px is None:
        parts = [values[top : top + rows_a_strip] for top in range(0, height, rows_a_strip)]
    else:
        room = ((0, -height % tile_px), (0, -width % tile_px), (0, 0))
        padded = np.pad(values, room)
        parts = [
            padded[top : top + tile_px, left : left + tile_px]
            for top in range(0, height, tile_px)
            for left in range(0, width, tile_px)
        ]
    stored = []
    for part in parts:
        if predictor:
            part = np.concatenate([part[:, :1], part[:, 1:] - part[:, :-1]], axis=1)
        data = part.astype(part.dtype.newbyteorder(order)).tobytes()
        stored.append(zlib.compress(data) if deflate else data)
    content = b"".join([b"II" if order == "<" else b"MM", struct.pack(f"{order}HI", 42, 0)])
    offsets = []
    for data in stored:
        offsets.append(len(content))
        content += data + b"\0" * (len(data) % 2)
    entries: dict[int, list[int]] = {
        256: [width],
        257: [height],
        258: [bits] * channels,
        259: [8 if deflate else 1],
        262: [2 if channels >= 3 else 1],
        277: [channels],
        284: [1],
        317: [2 if predictor else 1],
    }
    if channels in (2, 4):
        entries[338] = [0]
    lengths = [len(data) for data in stored]
    if tile_px is None:
        entries |= {273: offsets, 278: [rows_a_strip], 279: lengths}
    else:
        entries |= {322: [tile_px], 323: [tile_px], 324: offsets, 325: lengths}
    for tag, value in (tags or {}).items():
        entries.pop(tag, None)
        if value is not None:
            entries[tag] = [value]
    table = struct.pack(f"{order}H", len(entries))
    for tag in sorted(entries):
        numbers = entries[tag]
        kind, letter = (4, "I") if tag in (273, 279, 324, 325) else (3, "H")
        packed = struct.pack(f"{order}{len(numbers)}{letter}", *numbers)
        if len(packed) > 4:
            place = len(content)
            content += packed + b"\0" * (len(packed) % 2)
            packed = struct.pack(f"{order}I", place)
        table += struct.pack(f"{order}HHI", tag, kind, len(numbers)) + packed.ljust(4, b"\0")
    start = struct.pack(f"{order}I", len(content))
    path.write_bytes(content[:4] + start + content[8:] + table + struct.pack(f"{order}I", 0))
