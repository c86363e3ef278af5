"""Read the embedded assets: safetensors whose SHA-256 is in ``weights/manifest.json``."""

import hashlib
import importlib.resources
import json
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load
from torch import Tensor, nn

WEIGHTS = Path(str(importlib.resources.files("odediff.zoo"))) / "weights"
MANIFEST = "manifest.json"
_REMEDY = "reinstall odediff, or restore the file from its repository"

Network = TypeVar("Network", bound=nn.Module)


def read(name: str, folder: Path = WEIGHTS) -> dict[str, Tensor]:
    """Return the tensors of one asset.

    Raises:
        ValueError: the file or the manifest is missing, or the file differs from what the manifest describes.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        size, expected = manifest[name]["bytes"], manifest[name]["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / MANIFEST} does not describe {name} ({error!r}); {_REMEDY}") from error
    try:
        content = (folder / name).read_bytes()
    except OSError as error:
        raise ValueError(f"{folder / name} is missing; {_REMEDY}") from error
    if len(content) != size:
        raise ValueError(f"{folder / name} has {len(content)} bytes instead of {size}; {_REMEDY}")
    digest = hashlib.sha256(content).hexdigest()
    if digest != expected:
        raise ValueError(f"{folder / name} is altered: its SHA-256 is {digest}, not {expected}; {_REMEDY}")
    return load(content)


def load_network(build: type[Network], name: str, folder: Path = WEIGHTS) -> Network:
    """Return ``build()`` with the weights of an asset, frozen, in eval mode and float32."""
    weights = read(name, folder)
    with torch.random.fork_rng(devices=[]):  # drawing the initial weights would advance the user's generator
        network = build().float()  # whatever torch's default dtype is: a narrower one would round the weights
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)
