"""Read Fashion-MNIST (Xiao, Rasul & Vollgraf 2017, MIT licence) from its IDX files."""

import gzip
import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

LABELS = (
    "T-shirt",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

# SHA-256 of the uncompressed files, so that a copy recompressed by a packager passes too.
CHECKSUMS = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
HEADER_BYTES = {"images": 16, "labels": 8}


def load(root: str | Path, split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
    """Return images ``(N, 1, 28, 28)`` as uint8 and labels ``(N,)`` as int64.

    Args:
        root: the folder that holds the IDX files, gzipped or not.
        split: ``"train"`` (60,000) or ``"test"`` (10,000).

    Raises:
        ValueError: a file is missing from ``root``, or differs from the published one.
    """
    prefix = {"train": "train", "test": "t10k"}[split]
    images = _read(Path(root), f"{prefix}-images-idx3-ubyte", HEADER_BYTES["images"])
    labels = _read(Path(root), f"{prefix}-labels-idx1-ubyte", HEADER_BYTES["labels"])
    return torch.from_numpy(images).view(-1, 1, 28, 28), torch.from_numpy(labels).long()


def to_network(images: Tensor) -> Tensor:
    """Map bytes 0..255 to float32 in [-1, 1], the range of images for networks."""
    return images.float() / 127.5 - 1


def _read(root: Path, name: str, header: int) -> np.ndarray:
    plain, packed = root / name, root / f"{name}.gz"
    if plain.is_file():
        content = plain.read_bytes()
    elif packed.is_file():
        content = gzip.decompress(packed.read_bytes())
    else:
        raise ValueError(
            f"data.root={str(root)!r} holds neither {name} nor {name}.gz; point data.root at the Fashion-MNIST IDX "
            "files (Debian and Ubuntu install them with the package dataset-fashion-mnist)"
        )
    digest = hashlib.sha256(content).hexdigest()
    if digest != CHECKSUMS[name]:
        raise ValueError(
            f"data.root={str(root)!r}: {name} has SHA-256 {digest}, not {CHECKSUMS[name]}; fetch the file again"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).copy()
