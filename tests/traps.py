"""Files that execute code when unpickled, or that expand to a multiple of their size."""

import os
import pickle
import zipfile
from pathlib import Path

import torch

MARK = "executed"  # the folder that every trap creates under the root


class Trap:
    """Creates a folder when unpickled."""

    def __init__(self, root: Path) -> None:
        self.mark = str(root / MARK)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def trap(file: Path) -> None:
    torch.save({"conv.weight": Trap(file.parent)}, file)


def old_trap(file: Path) -> None:
    file.write_bytes(pickle.dumps({"conv.weight": Trap(file.parent)}, protocol=2))


def bomb(file: Path) -> None:
    """50 MB of zeros in a file of 50 kB."""
    plain = file.with_name("plain.pt")
    torch.save({"conv.weight": torch.zeros(12_500_000)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for record in source.infolist():
            packed.writestr(record.filename, source.read(record.filename))
    plain.unlink()
