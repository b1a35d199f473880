"""Devices are found by name, and an absent one is one clear line."""

import pytest
import torch

from simgen.devices import CPU_BUDGET, memory_budget, resolve_device
from simgen.errors import DeviceError, InputError


def test_auto_takes_a_gpu_only_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("cuda")


@pytest.mark.parametrize(("name", "n_devices"), [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2)])
def test_an_absent_gpu_is_an_error(
    monkeypatch: pytest.MonkeyPatch, name: str, n_devices: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n_devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_devices)
    with pytest.raises(DeviceError, match=f"sees {n_devices} CUDA devices here"):
        resolve_device(name)


def test_a_present_gpu_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize("name", ["", "gpu", "meta", "cuda:x"])
def test_unknown_devices_are_input_errors(name: str) -> None:
    with pytest.raises(InputError, match="expected a device"):
        resolve_device(name)


def test_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory_budget(torch.device("cpu")) == CPU_BUDGET
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 4000))
    assert memory_budget(torch.device("cuda")) == 500
