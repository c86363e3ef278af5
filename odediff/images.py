"""Real images for inversion: the embedded ones, or those of the user's folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from matplotlib.image import imread
from torch import Tensor

from odediff import zoo

SUFFIXES = (".png", ".jpg", ".jpeg")


def embedded_shape() -> tuple[int, ...]:
    """The shape of one of the embedded images."""
    return tuple(zoo.test_images()[0].shape[1:])


def embedded_images(count: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The first ``count`` embedded images and their labels, for a model whose samples have that shape.

    Raises:
        ValueError: the model's samples have another shape, or there are too few images.
    """
    images, labels = zoo.test_images()
    if tuple(images.shape[1:]) != shape:
        raise ValueError(
            f"model.shape={list(shape)}: this task works on the embedded {tuple(images.shape[1:])} images; "
            "task=invert task.images=FOLDER takes pictures of that shape"
        )
    if count > len(images):
        raise ValueError(f"samples={count} exceeds the {len(images)} embedded images; ask for at most {len(images)}")
    return images[:count], labels[:count]


def load_images(folder: str | None, count: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
    """The first ``count`` images in [-1, 1], ``(count, C, H, W)``, and their labels if they are the embedded ones.

    Raises:
        ValueError: the folder is missing or empty, or holds too few pictures or one of another size.
    """
    if folder is None:
        if shape != embedded_shape():
            raise ValueError(
                f"task.images=null stands for the embedded {embedded_shape()} images and the model has shape "
                f"{shape}; give task.images=FOLDER with pictures of that size"
            )
        return embedded_images(count, shape)
    if not Path(folder).is_dir():
        raise ValueError(f"task.images={folder} is not a folder; give one that holds {', '.join(SUFFIXES)} files")
    files = _picture_files(folder)
    if not files:
        raise ValueError(
            f"task.images={folder} holds no {', '.join(SUFFIXES)} files, and folders inside of it are not searched; "
            "name the one that holds them"
        )
    if len(files) < count:
        raise ValueError(f"task.images={folder} holds {len(files)} pictures, fewer than samples={count}; lower samples")
    return torch.stack([_read(file, shape) for file in files[:count]]), None


def pictures_hash(folder: str, count: int) -> str:
    """SHA-256 of the first ``count`` picture files of a folder, or of as many as there are."""
    digests = (hashlib.sha256(file.read_bytes()).digest() for file in _picture_files(folder)[:count])
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _picture_files(folder: str) -> list[Path]:
    """The picture files of a folder in the order of their names; none if it does not exist."""
    return sorted(file for file in Path(folder).glob("*") if file.suffix.lower() in SUFFIXES and file.is_file())


def _read(file: Path, shape: tuple[int, ...]) -> Tensor:
    try:
        pixels = imread(file)
    except Exception as error:  # damaged pictures raise errors of many kinds in pillow
        raise ValueError(f"{file} is not a readable picture ({error}); leave it out") from error
    if pixels.dtype == np.uint8:
        pixels = pixels / 255.0
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels[:, :, :3]
    if shape[0] == 1 and pixels.shape[2] == 3:
        pixels = pixels.mean(axis=2, keepdims=True)
    elif shape[0] == 3 and pixels.shape[2] == 1:
        pixels = pixels.repeat(3, axis=2)
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).float() * 2 - 1
    if tuple(image.shape) != shape:
        raise ValueError(f"{file} has shape {tuple(image.shape)} and the model has shape {shape}; resize it first")
    return image
