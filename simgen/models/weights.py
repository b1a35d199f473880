"""Weights on disk: one safetensors file, its header holds the configuration and the model card.

Nothing is ever unpickled: a weights file cannot run code.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from simgen.errors import ConfigError, LoadError
from simgen.models.config import NetworkConfig
from simgen.models.network import ForceField

FORMAT_VERSION = 1
"""Version of the weights format; files of another one are refused."""

PRETRAINED = Path(__file__).parent / "pretrained"
"""Folder of the weights that come with the package."""


def save_model(model: ForceField, path: str | Path, metadata: dict[str, Any]) -> None:
    """Write a model to a safetensors file, atomically.

    Parameters
    ----------
    model : ForceField
    path : str or Path
        Ends with ``.safetensors`` by convention.
    metadata : dict
        The model card: anything that JSON can hold. Read back with :func:`read_metadata`.
    """
    header = {
        "format": "simgen",
        "format_version": str(FORMAT_VERSION),
        "config": model.config.to_json(),
        "metadata": json.dumps(metadata, sort_keys=True),
    }
    tensors = {name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(save(tensors, header))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def list_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.stem for path in PRETRAINED.glob("*.safetensors"))


def find_model(name_or_path: str | Path) -> Path:
    """Return the weights file of a shipped model's name, or of a path.

    Raises
    ------
    LoadError
        If there is neither.
    """
    path = PRETRAINED / f"{name_or_path}.safetensors"
    if str(name_or_path) in list_models():
        return path
    path = Path(name_or_path)
    if path.is_file():
        return path
    available = ", ".join(list_models()) or "none"
    raise LoadError(
        f"expected the name of a shipped model ({available}) or a weights file, "
        f"got {str(name_or_path)!r}"
    )


def read_metadata(name_or_path: str | Path) -> dict[str, Any]:
    """Read the model card that was given to :func:`save_model`."""
    return _read(find_model(name_or_path))[1]


def load_model(
    name_or_path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> ForceField:
    """Load a shipped model by name, or a weights file.

    Raises
    ------
    LoadError
        If there is no such model, or the file is not one of ours.

    Examples
    --------
    >>> load_model("no such model")
    Traceback (most recent call last):
    ...
    simgen.errors.LoadError: expected the name of a shipped model ...
    """
    path = find_model(name_or_path)
    config, _, tensors = _read(path)
    model = ForceField(config).to(torch.float64)
    try:
        model.load_state_dict({name: tensor.to(torch.float64) for name, tensor in tensors.items()})
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise LoadError(f"the weights in {path} do not fit their configuration: {reason}") from None
    return model.to(device=device, dtype=dtype).requires_grad_(False)


def _read(path: Path) -> tuple[NetworkConfig, dict[str, Any], dict[str, torch.Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise LoadError(f"expected a safetensors file, {path} is not: {error}") from None
    if header.get("format") != "simgen":
        raise LoadError(f"expected weights written by simgen, {path} was written by something else")
    version = header.get("format_version")
    if version != str(FORMAT_VERSION):
        raise LoadError(
            f"expected weights of format version {FORMAT_VERSION}, got {version} in {path}; "
            "update simgen"
        )
    try:
        return NetworkConfig.from_json(header["config"]), json.loads(header["metadata"]), tensors
    except (KeyError, ValueError, ConfigError) as error:
        raise LoadError(f"the header of {path} cannot be understood: {error}") from None
