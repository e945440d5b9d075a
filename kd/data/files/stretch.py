"""Pictures of any pixels as people see them: RGB of 8 bits.

Of three channels and more the first three are shown, else the first one in grey. Values other than RGB of 8 bits are
stretched, each channel by itself, as geographic information systems do: what most pixels show goes from black to white.
"""

import numpy as np

from kd.data.files.pixels import USUAL, Pixels

ENDS = (2, 98)  # percentiles that become black and white


def as_rgb(picture: np.ndarray, pixels: Pixels) -> np.ndarray:
    """A picture, H x W x channels, as H x W x 3 uint8; unchanged if it is RGB of 8 bits."""
    if pixels == USUAL:
        return picture
    shown = picture[..., :3] if picture.shape[2] >= 3 else picture[..., :1]
    low, high = np.percentile(shown.astype(np.float32), ENDS, axis=(0, 1))
    share = (shown.astype(np.float32) - low) / np.maximum(high - low, np.finfo(np.float32).tiny)
    grey = np.round(share.clip(0, 1) * 255).astype(np.uint8)
    return grey if grey.shape[2] == 3 else np.repeat(grey, 3, axis=2)
