"""Is there a GPU that kernels can run on? One question, one clear answer. Needs no driver to be asked."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import attrs

from velollm.gpu.errors import EXTRA, GpuUnavailable

__all__ = ["Found", "check_device", "look", "open_device"]

PACKAGES = ("cuda-core", "cuda-bindings", "nvidia-cuda-nvrtc")
MINIMUM = 75  # compute capability


@attrs.frozen(kw_only=True)
class Found:
    """What of CUDA is here: `packages` with their versions, the driver's CUDA `driver` version, the GPUs' names.

    `missing` says what keeps kernels from running, and is empty when they can.
    """

    packages: dict[str, str]
    driver: str | None
    devices: tuple[str, ...]
    missing: str

    @property
    def summary(self) -> str:
        """All of it in one sentence."""
        packages = ", ".join(f"{name} {number}" for name, number in self.packages.items()) or "no CUDA package"
        driver = f"a driver for CUDA {self.driver}" if self.driver else "no NVIDIA driver"
        devices = ", ".join(self.devices) if self.devices else "no GPU"
        return f"found {packages}; {driver}; {devices}"


def look() -> Found:
    """What of CUDA is here. Raises nothing."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            pass
    if len(packages) < len(PACKAGES):
        absent = ", ".join(name for name in PACKAGES if name not in packages)
        return Found(packages=packages, driver=None, devices=(), missing=f"{absent} not installed: {EXTRA}")
    try:
        from cuda.bindings import driver
        from cuda.pathfinder import DynamicLibNotFoundError
    except ImportError as error:
        return Found(packages=packages, driver=None, devices=(), missing=f"cuda-python cannot be loaded ({error})")
    try:
        _require(driver.cuInit(0))
        number = int(_require(driver.cuDriverGetVersion()))
        devices = tuple(_name(driver, index) for index in range(_require(driver.cuDeviceGetCount())))
    except DynamicLibNotFoundError:
        return Found(packages=packages, driver=None, devices=(), missing="no NVIDIA driver is installed")
    except (RuntimeError, OSError) as error:
        return Found(packages=packages, driver=None, devices=(), missing=f"the NVIDIA driver does not answer ({error})")
    shown = f"{number // 1000}.{number % 1000 // 10}"
    return Found(packages=packages, driver=shown, devices=devices, missing="" if devices else "the driver sees no GPU")


def check_device(index: int) -> int:
    """`index`, where there is a GPU of that number. It is not opened. Raises `GpuUnavailable`."""
    found = look()
    if found.missing:
        raise GpuUnavailable(f"CUDA kernels cannot run here: {found.missing}; {found.summary}")
    if not 0 <= index < len(found.devices):
        raise GpuUnavailable(f"there is no GPU number {index}; {found.summary}")
    return index


def open_device(index: int = 0) -> Any:
    """The `cuda.core.Device` number `index`, made current. Raises `GpuUnavailable`."""
    check_device(index)
    from cuda.core import Device

    device = Device(index)
    major, minor = device.compute_capability
    if major * 10 + minor < MINIMUM:
        raise GpuUnavailable(f"{device.name} has compute capability {major}.{minor}: the kernels need 7.5")
    device.set_current()
    return device


def _name(driver: Any, index: int) -> str:
    raw: bytes = _require(driver.cuDeviceGetName(128, _require(driver.cuDeviceGet(index))))
    return raw.split(b"\0")[0].decode(errors="replace")


def _require(answer: tuple[Any, ...]) -> Any:
    if int(answer[0]) != 0:
        raise RuntimeError(f"{answer[0].name}")
    return answer[1] if len(answer) > 1 else None
