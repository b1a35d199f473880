"""Where to compute, and how much memory there is for it."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from simgen.errors import DeviceError, InputError

CPU_BUDGET = 2**30
"""Bytes of intermediate results at a time on a CPU; more makes nothing faster there."""

GPU_SHARE = 0.5
"""Share of the free memory of a GPU that intermediate results may take."""


def resolve_device(name: str) -> torch.device:
    """Turn a name such as ``auto``, ``cpu``, ``cuda`` or ``cuda:1`` into a device that is there.

    Raises
    ------
    InputError
        If it is not the name of a device.
    DeviceError
        If the machine has no such device.

    Examples
    --------
    >>> resolve_device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"expected a device auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"expected a device auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda":
        n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= n_devices:
            raise DeviceError(
                f"{name} was asked for, but torch {torch.__version__} sees {n_devices} CUDA "
                "devices here; use --device cpu, or install the CUDA build of torch"
            )
    return device


def default_workers(device: torch.device) -> int:
    """Processes that make the most of a device: one per core on a CPU, one on a GPU."""
    return (os.cpu_count() or 1) if device.type == "cpu" else 1


def memory_budget(device: torch.device) -> int:
    """Bytes that the intermediate results of one chunk may take on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(GPU_SHARE * free)
    return CPU_BUDGET


def keep_freed_memory() -> None:
    """Let the C library keep what tensors free, instead of returning it to the system.

    By default glibc asks the system for every large tensor anew, and a third of the time of a
    network's evaluation on a CPU goes into page faults. Does nothing with other C libraries.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        trim_threshold, top_pad, mmap_max = -1, -2, -4  # names of the parameters in malloc.h
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(top_pad, 2**26)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread of the CPU as long as the block lasts."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
