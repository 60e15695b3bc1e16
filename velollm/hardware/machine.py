"""What a machine is, as values: bytes, bytes a second, Hz, watts. What is None is unknown."""

from __future__ import annotations

import attrs

from velollm.hardware.host import Note

__all__ = ["CPU", "GPU", "Cache", "Disk", "Engine", "LoadedModel", "Machine", "Memory", "MigSlice", "System"]


@attrs.frozen(kw_only=True)
class MigSlice:
    """One instance of a GPU that NVIDIA's MIG has cut into parts, `profile` such as `3g.71gb`."""

    profile: str
    uuid: str
    memory_total: int | None = None


@attrs.frozen(kw_only=True)
class GPU:
    """One graphics processor. A `unified` one computes in the system's memory; `memory_total` is what it may use.

    `compute` is NVIDIA's compute capability (`9.0`), AMD's target (`gfx1100`) or the number of Apple's cores.
    `throttled` lists what holds its clocks down at the moment.
    """

    vendor: str
    name: str
    index: int = 0
    memory_total: int | None = None
    memory_free: int | None = None
    unified: bool = False
    driver: str = ""
    compute: str = ""
    bandwidth: int | None = None
    power_limit: float | None = None
    power_default: float | None = None
    power: float | None = None
    temperature: float | None = None
    throttled: tuple[str, ...] = ()
    pcie_width: int | None = None
    pcie_width_max: int | None = None
    mig: tuple[MigSlice, ...] = ()
    pci: str = ""
    source: str = ""

    @property
    def usable(self) -> int:
        """Bytes that a model may take: what is free, of a cut GPU the largest part."""
        if self.mig:
            return max((part.memory_total or 0) for part in self.mig)
        return self.memory_free if self.memory_free is not None else self.memory_total or 0


@attrs.frozen(kw_only=True)
class Cache:
    """The caches of one level, all instances together."""

    level: int
    size: int
    instances: int


@attrs.frozen(kw_only=True)
class CPU:
    """The processor. `usable_cores` are the physical ones within affinity and the cgroup's quota (`quota` CPUs).

    `performance` and `efficiency` count the cores of a hybrid; both are 0 on others. `isa` names the vector units that
    matter for inference, in llama.cpp's words (AVX2, AVX512_VNNI, AMX_INT8, NEON, SVE, ...).
    """

    model: str
    vendor: str = ""
    sockets: int = 1
    physical: int
    logical: int
    performance: int = 0
    efficiency: int = 0
    usable_cores: int
    affinity: int | None = None
    quota: float | None = None
    isa: tuple[str, ...] = ()
    caches: tuple[Cache, ...] = ()
    numa_nodes: int = 1
    max_clock: int | None = None
    governor: str = ""
    load: float | None = None
    throttle_count: int | None = None


@attrs.frozen(kw_only=True)
class Memory:
    """`usable` is the smaller of what is available and what the cgroup still allows; `bandwidth` is measured."""

    total: int
    available: int
    usable: int
    limit: int | None = None
    swap_total: int = 0
    swap_used: int = 0
    bandwidth: int | None = None


@attrs.frozen(kw_only=True)
class Disk:
    """The file system under the folder of models."""

    path: str
    total: int
    free: int


@attrs.frozen(kw_only=True)
class System:
    """The operating system. `container` is `docker`, `podman`, `kubernetes`, `lxc` or empty; `wsl` the version or 0."""

    name: str
    kernel: str = ""
    arch: str = ""
    board: str = ""
    container: str = ""
    wsl: int = 0
    virtual: str = ""


@attrs.frozen(kw_only=True)
class LoadedModel:
    """A model in an engine's memory; `gpu_share` is the part of it on a GPU, from 0 to 1."""

    name: str
    size: int | None = None
    gpu_share: float | None = None
    context: int | None = None


@attrs.frozen(kw_only=True)
class Engine:
    """A running engine: `settings` are what it was told in variables or flags, as far as its process may be read.

    `process_known` says whether it could; without it, empty `settings` say nothing.
    """

    kind: str
    url: str
    version: str = ""
    models: tuple[str, ...] = ()
    loaded: tuple[LoadedModel, ...] = ()
    slots: int | None = None
    context: int | None = None
    settings: dict[str, str] = attrs.field(factory=dict)
    process_known: bool = False
    pid: int | None = None
    binary: str = ""


@attrs.frozen(kw_only=True)
class Machine:
    """All that `detect()` found. `notes` are what was in the way of knowing more."""

    system: System
    cpu: CPU
    memory: Memory
    gpus: tuple[GPU, ...] = ()
    disk: Disk | None = None
    engines: tuple[Engine, ...] = ()
    installed: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()
    seconds: float = 0.0

    @property
    def accelerated(self) -> bool:
        """Whether a GPU is there that engines compute on: dedicated memory, or Apple's."""
        return any(gpu.usable and (not gpu.unified or gpu.vendor == "apple") for gpu in self.gpus)
