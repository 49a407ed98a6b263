"""The NVIDIA GPUs of this machine, asked of the driver itself: no torch, no cuda-python; works on Jetson too."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

DRIVER = "libcuda.so.1"
_MAJOR, _MINOR, _INTEGRATED = 75, 76, 18


@dataclass(frozen=True)
class Gpu:
    """One GPU: name, compute capability as nvcc writes it ("87"), memory in MiB, whether it shares the processor's memory."""

    name: str
    architecture: str
    memory_mib: int
    integrated: bool


def local_gpus(driver: Any = None) -> list[Gpu]:
    """GPUs of this machine; [] without a driver or a GPU.

    Args:
        driver: the loaded driver library, found by its usual name when None.
    """
    if driver is None:
        try:
            driver = ctypes.CDLL(DRIVER)
        except OSError:
            return []
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    return [_describe(driver, number) for number in range(count.value)]


def _describe(driver: Any, number: int) -> Gpu:
    device, memory = ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGet(ctypes.byref(device), number)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    major, minor, integrated = (_attribute(driver, device, which) for which in (_MAJOR, _MINOR, _INTEGRATED))
    return Gpu(name.value.decode(errors="replace"), f"{major}{minor}", memory.value >> 20, bool(integrated))


def _attribute(driver: Any, device: ctypes.c_int, which: int) -> int:
    value = ctypes.c_int()
    driver.cuDeviceGetAttribute(ctypes.byref(value), which, device)
    return value.value
