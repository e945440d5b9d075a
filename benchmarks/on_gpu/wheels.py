"""Collects what a machine with torch but without a network lacks: `python -m benchmarks.on_gpu.wheels FOLDER`.

Versions and hashes are those of requirements.lock; the wheels are for CPython 3.12 on Linux, x86-64. What is expected
to be there (torch, torchvision, timm, numpy, OpenCV, scipy, safetensors, psutil, rich, ...) is not among them.
"""

import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

LOCK = Path(__file__).resolve().parents[2] / "requirements.lock"
NAMES = (
    "hydra-core", "omegaconf", "hydra-optuna-sweeper", "hydra-joblib-launcher", "albumentations", "albucore", "simsimd",
    "stringzilla", "pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typing-extensions",
    "segmentation-models-pytorch",
)  # fmt: skip
TARGET = ["--python-version", "3.12", "--implementation", "cp"]
for libc in (17, 24, 26, 27, 28, 31, 34):
    TARGET += ["--platform", f"manylinux_2_{libc}_x86_64"]
TARGET += ["--platform", "manylinux2014_x86_64"]


def pinned(lock: str, names: tuple[str, ...]) -> str:
    """The entries of some packages in a lock, with their hashes.

    Raises:
        KeyError: one is not in the lock.
    """
    entries = {re.split(r"[=\[ ;]", entry)[0]: entry for entry in re.split(r"\n(?=\S)", lock.strip())}
    return "".join(f"{entries[name].strip()}\n" for name in names)


def main(folder: str) -> None:
    with TemporaryDirectory() as place:
        wanted = Path(place) / "wanted.txt"
        wanted.write_text(pinned(LOCK.read_text(), NAMES))
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--require-hashes"]
        command = [*pip, "--no-deps", "--only-binary=:all:", *TARGET, "--dest", folder, "-r", str(wanted)]
        if code := subprocess.run(command).returncode:
            sys.exit(code)
    sizes = {path.name: path.stat().st_size for path in sorted(Path(folder).glob("*.whl"))}
    for name, size in sizes.items():
        print(f"{size / 1e6:6.2f} MB  {name}")
    print(f"{sum(sizes.values()) / 1e6:6.2f} MB  in {folder}")


if __name__ == "__main__":
    main(*sys.argv[1:])
