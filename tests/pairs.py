"""Write pairs of images and masks into a data folder."""

import numpy as np
from PIL import Image


def picture(height=32, width=64, value=120):
    image = np.full((height, width, 3), value, dtype=np.uint8)
    image[:, : width // 2, 0] = 250
    return image


def mask(height=32, width=64, values=(0, 1)):
    """The values in vertical stripes, from left to right."""
    columns = np.arange(width) * len(values) // width
    return np.tile(np.asarray(values, dtype=np.uint8)[columns], (height, 1))


def save(array, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(path, **options)


def put(root, stem, image=None, labels=None, split="train", suffix=".png"):
    save(picture() if image is None else image, root / "images" / split / f"{stem}{suffix}")
    save(mask() if labels is None else labels, root / "masks" / split / f"{stem}.png")
