"""What made an output, written into it: a digest of the network, the options and the picture.

A PNG has it as text, a JPEG as comment, and a .npy file behind the array, where readers do not look.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile, PngInfo

from kd.data.files.image_file import open_file
from kd.system.files import json_digest
from kd.system.installation import NAME

START = f"{NAME} "
LENGTH = len(START) + len(json_digest(None))


def save_picture(picture: Image.Image, path: Path, mark: str, **options: Any) -> None:
    """Save a PNG or a JPEG, by its suffix, with the mark of what made it."""
    if path.suffix == ".png":
        text = PngInfo()
        text.add_text("Software", START + mark)
        picture.save(path, pnginfo=text, **options)
    else:
        picture.save(path, comment=START + mark, **options)


def save_array(array: np.ndarray, path: Path, mark: str) -> None:
    """Save a .npy file with the mark of what made it."""
    with path.open("wb") as file:
        np.save(file, array)
        file.write((START + mark).encode())


def mark_of(path: Path) -> str | None:
    """The mark in an output; None if it has none or cannot be read."""
    try:
        with open_file(path) as file:
            if path.suffix == ".npy":
                file.seek(-LENGTH, os.SEEK_END)
                text: Any = file.read()
            else:
                kind = PngImageFile if path.suffix == ".png" else JpegImageFile
                with kind(file) as picture:  # unlike Image.open, it bears masks of pictures that were read in tiles
                    text = picture.info.get("Software") or picture.info.get("comment")
    except Exception:  # decoders raise nearly anything; such a file was not written here
        return None
    text = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    return text.removeprefix(START) if text.startswith(START) else None
