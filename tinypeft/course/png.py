"""A picture as a small PNG: with a palette it takes a third of the bytes that Matplotlib writes."""
import struct
import zlib

import numpy as np

from ..common.hints import Array

__all__ = ["palette_png"]


def palette_png(pixels: Array) -> bytes:
    """The bytes of a PNG of the pixels (height, width, 3), uint8.

    Up to 256 colours are kept as they are. If there are more, the cube of colours is cut into 32 ×
    32 × 32 cells. The 256 fullest cells keep their most frequent colour, and every other colour
    becomes the nearest of these. In a chart, that affects only the soft edges of letters and lines;
    a photograph would suffer.
    """
    height, width, _ = pixels.shape
    packed = pixels.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)  # 0xRRGGBB
    colours, place, count = np.unique(packed, return_inverse=True, return_counts=True)
    rgb = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], 1).astype(np.int32)  # (n, 3)
    chosen = np.arange(len(colours))
    if len(colours) > 256:
        order = np.argsort(-count, kind="stable")
        cells = (rgb[order] >> 3) @ [1 << 10, 1 << 5, 1]
        _, first, cell = np.unique(cells, return_index=True, return_inverse=True)
        fullest = np.argsort(-np.bincount(cell, count[order]), kind="stable")[:256]
        chosen = np.sort(order[first[fullest]])
    palette = rgb[chosen]
    index = np.empty(len(rgb), np.uint8)
    for i in range(0, len(rgb), 4096):                   # 4,096 colours at a time, to save memory
        index[i:i + 4096] = ((rgb[i:i + 4096, None] - palette) ** 2).sum(-1).argmin(1)
    rows = np.zeros((height, 1 + width), np.uint8)       # a row begins with its filter; 0 is none
    rows[:, 1:] = index[place.reshape(height, width)]
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)       # 8 bits a pixel, palette
    return b"\x89PNG\r\n\x1a\n" + b"".join([
        _chunk(b"IHDR", header), _chunk(b"PLTE", palette.astype(np.uint8).tobytes()),
        _chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)), _chunk(b"IEND", b"")])


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
