"""Every machine on record is read as what it is."""

from __future__ import annotations

import attrs
import orjson
import pytest
from support.machines import RecordedHost, machine_names

from velollm.hardware import Machine, read_machine
from velollm.hardware.report import render

GIB = 1 << 30


def read(name: str) -> tuple[Machine, RecordedHost]:
    host = RecordedHost(name)
    return read_machine(host), host


@pytest.mark.parametrize("name", machine_names())
def test_every_machine_can_be_read_and_shown(name: str) -> None:
    machine, _ = read(name)
    assert machine.cpu.physical >= 1
    assert 1 <= machine.cpu.usable_cores <= machine.cpu.logical
    assert 0 <= machine.memory.usable <= machine.memory.available <= machine.memory.total
    assert orjson.loads(orjson.dumps(attrs.asdict(machine)))["cpu"]["model"]
    text = render(machine)
    assert machine.cpu.model in text
    assert all(len(line) <= 160 for line in text.splitlines())
    for gpu in machine.gpus:
        assert gpu.memory_total is None or 0 <= gpu.memory_total < 1 << 50
        assert gpu.name in text


def test_nvidia_desktop() -> None:
    machine, _ = read("nvidia_desktop")
    cpu = machine.cpu
    assert (cpu.model, cpu.physical, cpu.logical) == ("13th Gen Intel Core i9-13900K", 24, 32)
    assert (cpu.performance, cpu.efficiency, cpu.usable_cores) == (8, 16, 8)
    assert {"AVX2", "AVX_VNNI"} <= set(cpu.isa)
    assert "AVX512F" not in cpu.isa
    assert [(cache.level, cache.size, cache.instances) for cache in cpu.caches] == [
        (1, (8 * 48 + 16 * 32) << 10, 24), (2, (8 * 2048 + 4 * 4096) << 10, 12), (3, 36864 << 10, 1),
    ]  # fmt: skip
    assert (cpu.max_clock, cpu.governor, cpu.load) == (5_800_000_000, "powersave", 0.42)
    assert (cpu.quota, machine.memory.limit) == (None, None)
    (gpu,) = machine.gpus
    assert (gpu.name, gpu.compute, gpu.source) == ("NVIDIA GeForce RTX 4090", "8.9", "nvidia-smi")
    assert (gpu.memory_total, gpu.memory_free) == (24564 << 20, 23028 << 20)
    assert gpu.bandwidth == 1_008_096_000_000
    assert (gpu.throttled, gpu.unified, gpu.pcie_width) == ((), False, 16)
    assert machine.accelerated
    assert machine.notes == ()


def test_laptop_with_two_gpus() -> None:
    machine, _ = read("laptop_two_gpus")
    nvidia, intel = machine.gpus
    assert (nvidia.name, nvidia.throttled) == ("NVIDIA GeForce RTX 4060 Laptop GPU", ("power cap", "thermal"))
    assert (nvidia.power_limit, nvidia.power_default, nvidia.bandwidth) == (55, 80, 256_032_000_000)
    assert (intel.name, intel.unified) == ("Intel Iris Xe (Raptor Lake)", True)
    assert (machine.cpu.performance, machine.cpu.efficiency) == (6, 8)
    assert machine.cpu.throttle_count == 5312
    assert machine.memory.swap_used == (8388604 - 6291452) << 10
    assert machine.accelerated


def test_server_with_mig() -> None:
    machine, _ = read("h200_mig")
    cpu = machine.cpu
    assert (cpu.sockets, cpu.physical, cpu.logical, cpu.numa_nodes) == (2, 112, 224, 2)
    assert {"AMX_INT8", "AMX_BF16", "AVX512_VNNI"} <= set(cpu.isa)
    (gpu,) = machine.gpus
    assert (gpu.name, gpu.compute, gpu.source) == ("NVIDIA H200", "9.0", "pynvml")
    assert gpu.bandwidth == 4_916_736_000_000
    assert [(part.profile, part.memory_total) for part in gpu.mig] == [
        ("3g.71gb", 70 * GIB), ("1g.18gb", 16 * GIB),
    ]  # fmt: skip
    assert gpu.usable == 70 * GIB


def test_radeon() -> None:
    machine, host = read("radeon_desktop")
    card, small = machine.gpus
    assert (card.name, card.compute, card.unified) == ("Radeon RX 7900 XT/XTX", "gfx1100", False)
    assert (card.memory_total, card.memory_free) == (25753026560, 25753026560 - 1102053376)
    assert card.bandwidth == 959_232_000_000
    assert (card.power, card.power_limit, card.temperature) == (23, 339, 47)
    assert (small.compute, small.unified) == ("gfx1036", True)
    assert host.asked == []  # everything is in sysfs; no tool is waited for
    assert machine.cpu.model == "AMD Ryzen 7 7800X3D"


def test_apu() -> None:
    machine, _ = read("amd_apu")
    (gpu,) = machine.gpus
    assert (gpu.name, gpu.unified) == ("Radeon 8060S", True)
    assert gpu.memory_total == 536870912 + 67102896128
    assert {note.about for note in machine.notes} == {"/dev/kfd", "/sys/class/kfd/kfd/topology/nodes"}
    assert machine.cpu.caches[-1].instances == 2


def test_apple() -> None:
    machine, _ = read("apple_m4_max")
    cpu = machine.cpu
    assert (cpu.model, cpu.performance, cpu.efficiency, cpu.usable_cores) == ("Apple M4 Max", 12, 4, 12)
    assert {"NEON", "DOTPROD", "I8MM", "SME"} <= set(cpu.isa)
    (gpu,) = machine.gpus
    assert (gpu.compute, gpu.bandwidth, gpu.unified) == ("40 cores", 546_000_000_000, True)
    assert gpu.memory_total == 48 * GIB
    assert gpu.memory_free == 48 * GIB - 1610612736
    assert machine.memory.swap_used == int(512.25 * (1 << 20))
    assert machine.memory.available == (1203442 + 1298213 + 4021 + 18222) * 16384
    assert machine.system.name == "macOS 15.5"
    assert machine.accelerated


def test_arc() -> None:
    machine, _ = read("intel_arc")
    (gpu,) = machine.gpus
    assert (gpu.name, gpu.memory_total, gpu.source) == ("Intel Arc A770 Graphics", 16225243136, "xpu-smi")
    assert (gpu.bandwidth, gpu.unified, gpu.power_limit) == (560_000_000_000, False, 190)
    bare = RecordedHost("intel_arc")
    bare.commands.clear()
    (gpu,) = read_machine(bare).gpus
    assert (gpu.name, gpu.memory_total, gpu.source) == ("Intel Arc A770", 16 * GIB, "sysfs")


def test_raspberry_pi() -> None:
    machine, _ = read("raspberry_pi_5")
    assert machine.cpu.model == "Cortex-A76"
    assert machine.cpu.isa == ("NEON", "DOTPROD", "FP16")
    assert (machine.cpu.physical, machine.gpus) == (4, ())
    assert machine.system.board == "Raspberry Pi 5 Model B Rev 1.0"
    assert "models run on the CPU" in render(machine)


def test_container() -> None:
    machine, _ = read("container_limits")
    cpu, memory = machine.cpu, machine.memory
    assert (cpu.physical, cpu.affinity, cpu.quota, cpu.usable_cores) == (64, 4, 2.5, 2)
    assert memory.limit == 8 * GIB
    assert memory.usable == 8 * GIB - 3 * GIB + GIB
    assert machine.system.container == "docker"
    assert "limited to 2.5 CPUs by cgroup, 4 by affinity: 2 to compute on" in render(machine)


def test_kubernetes_with_cgroup_1() -> None:
    machine, _ = read("kubernetes_v1")
    assert (machine.cpu.quota, machine.cpu.usable_cores) == (0.5, 1)
    assert machine.memory.usable == 2 * GIB - 512 * (1 << 20) + 128 * (1 << 20)
    assert (machine.system.container, machine.system.virtual) == ("kubernetes", "KVM")
    assert machine.cpu.model == "Intel Xeon"


def test_wsl() -> None:
    machine, _ = read("wsl")
    assert (machine.system.wsl, machine.system.virtual) == (2, "")
    assert machine.gpus[0].bandwidth == 760_080_000_000


def test_windows() -> None:
    machine, _ = read("windows")
    assert (machine.cpu.physical, machine.cpu.logical) == (12, 24)
    assert machine.cpu.model.startswith("AMD Ryzen 9 7900X")
    assert machine.memory.total == 68422938624
    assert (machine.gpus[0].pcie_width, machine.gpus[0].pcie_width_max) == (8, 16)
    assert machine.system.name.startswith("Microsoft Windows [Version 10")


def test_what_hangs_or_is_denied_is_said() -> None:
    machine, _ = read("hanging_driver")
    assert machine.gpus == ()
    words = render(machine)
    assert "nvidia-smi: did not answer within 0.7 s" in words
    assert "nvidia-smi: 2 NVIDIA GPUs are on the bus, but there is no working driver" in words
    assert "/sys/class/drm: Permission denied" in words
    machine, _ = read("broken_driver")
    assert any("couldn't communicate" in note.problem for note in machine.notes)


def test_old_drivers_know_fewer_fields() -> None:
    host = RecordedHost("nvidia_desktop")
    query = next(iter(host.commands))
    host.commands[query] = None
    host.files["/failing/nvidia-smi"] = 'Field "compute_cap" is not a valid field to query.'
    old = ("nvidia-smi", "--query-gpu=index,name,uuid,memory.total,memory.free,driver_version", query[2])
    host.commands[old] = "0, Tesla K80, GPU-1, 11441, 11441, 470.256.02"
    (gpu,) = read_machine(host).gpus
    assert (gpu.name, gpu.memory_total, gpu.compute, gpu.bandwidth) == ("Tesla K80", 11441 << 20, "", None)


def test_nothing_absurd_is_believed() -> None:
    machine, _ = read("absurd")
    assert machine.memory.total == 4 * GIB
    assert machine.cpu.logical == 1
    assert machine.cpu.load is None
    assert all(
        gpu.memory_total is None or gpu.memory_total <= 4 * GIB for gpu in machine.gpus if gpu.vendor != "nvidia"
    )
    assert any(note.about == "rocm-smi" or note.about == "xpu-smi" for note in machine.notes)


def test_an_empty_machine() -> None:
    for system in ("linux", "darwin", "windows"):
        machine = read_machine(RecordedHost(text=f"=== system {system} x"))
        assert machine.cpu.usable_cores == 1
        assert machine.memory.total == 4 * GIB
        assert render(machine)
