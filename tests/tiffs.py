"""An obvious writer of TIFF files: any channels and types, in strips or tiles, as pixels, planes or pages."""

import struct
import zlib
from pathlib import Path

import numpy as np

FORMATS = {"u": 1, "i": 2, "f": 3}


def write_tiff(
    path: Path, array: np.ndarray, *, planar: bool = False, tile: int | None = None, deflate: bool = False,
    predictor: int = 1, rows: int = 7, big_endian: bool = False,
) -> Path:  # fmt: skip
    """Write H x W x channels; tiles are squares of `tile` pixels, strips have `rows` rows."""
    planes = [array[..., [channel]] for channel in range(array.shape[2])] if planar else [array]
    height, width, channels = array.shape
    tall, wide = (tile, tile) if tile else (min(rows, height), width)
    pieces = []
    for plane in planes:
        for top in range(0, height, tall):
            for left in range(0, width, wide):
                piece = plane[top : top + tall, left : left + wide]
                if tile:
                    missing = (tile - piece.shape[0], tile - piece.shape[1])
                    piece = np.pad(piece, ((0, missing[0]), (0, missing[1]), (0, 0)))
                data = _encoded(piece.astype(piece.dtype.newbyteorder(">" if big_endian else "<")), predictor)
                pieces.append(zlib.compress(data) if deflate else data)
    tags = {
        256: width, 257: height, 258: (array.dtype.itemsize * 8,) * channels, 259: 8 if deflate else 1, 262: 1,
        277: channels, 284: 2 if planar else 1, 317: predictor, 339: (FORMATS[array.dtype.kind],) * channels,
    }  # fmt: skip
    tags |= {322: wide, 323: tall} if tile else {278: tall}
    _save(path, [(tags, pieces, tile)], big_endian)
    return path


def write_pages(path: Path, array: np.ndarray) -> Path:
    """Write H x W x channels as a page of one channel each, as tifffile does with channels x H x W."""
    height, width, channels = array.shape
    tags = {256: width, 257: height, 258: array.dtype.itemsize * 8, 259: 1, 262: 1, 277: 1, 278: height,
            339: FORMATS[array.dtype.kind]}  # fmt: skip
    _save(path, [(tags, [array[..., channel].tobytes()], None) for channel in range(channels)], False)
    return path


def _encoded(piece: np.ndarray, predictor: int) -> bytes:
    _, width, channels = piece.shape
    if predictor == 2:  # differences of neighbours, channel by channel
        found = piece.copy().view(np.dtype(f"u{piece.dtype.itemsize}").newbyteorder(piece.dtype.byteorder))
        for column in range(width - 1, 0, -1):
            found[:, column] -= found[:, column - 1]
        return found.tobytes()
    if predictor == 3:  # bytes in planes, the most significant first; then differences of bytes, a pixel apart
        rows = []
        for row in piece.astype(piece.dtype.newbyteorder(">")):
            planes = np.frombuffer(row.tobytes(), np.uint8).reshape(-1, piece.dtype.itemsize).T.reshape(-1).copy()
            different = [(int(planes[at]) - int(planes[at - channels])) % 256 for at in range(channels, len(planes))]
            rows.append(planes[:channels].tobytes() + bytes(different))
        return b"".join(rows)
    return piece.tobytes()


def _save(path: Path, pages: list, big_endian: bool) -> None:
    """Directories one after the other, each followed by its pieces."""
    order = ">" if big_endian else "<"
    content, link = bytearray((b"MM" if big_endian else b"II") + struct.pack(order + "HI", 42, 8)), None
    for tags, pieces, tile in pages:
        start = len(content)
        if link is not None:
            content[link : link + 4] = struct.pack(order + "I", start)
        where, lengths = (324, 325) if tile else (273, 279)
        tags = {**tags, where: (0,) * len(pieces), lengths: tuple(map(len, pieces))}
        first = start + len(_directory(tags, start, order))
        tags[where] = tuple(np.cumsum([first, *map(len, pieces)])[:-1].tolist())
        content += _directory(tags, start, order) + b"".join(pieces)
        link = start + 2 + 12 * len(tags)
    path.write_bytes(bytes(content))


def _directory(tags: dict, start: int, order: str) -> bytes:
    """Entries of 12 bytes, all of them whole numbers of 32 bits, and then the lists that do not fit into one."""
    entries, lists = struct.pack(order + "H", len(tags)), b""
    after = start + 2 + 12 * len(tags) + 4
    for tag, value in sorted(tags.items()):
        values = value if isinstance(value, tuple) else (value,)
        data = struct.pack(f"{order}{len(values)}I", *values)
        entries += struct.pack(order + "HHI", tag, 4, len(values))
        entries += data if len(data) == 4 else struct.pack(order + "I", after + len(lists))
        lists += data if len(data) > 4 else b""
    return entries + bytes(4) + lists
