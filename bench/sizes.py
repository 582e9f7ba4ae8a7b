# SPDX-License-Identifier: GPL-2.0
"""Bytes: of a piece of memory, of what a request keeps, of pages; and the seconds
that it takes to lend a BAR to others, by physdma and with pages."""

import re
import sys
from types import SimpleNamespace

from harness import ROOT
from harness.topology import Ivshmem, Machine, PciTestdev, Ssd
from harness.vm import Vm

sys.path.insert(0, str(ROOT / "tests/qemu"))
from large_bar import binding  # noqa: E402

GB = [1, 4, 16]
# The layer's own state beside a request.
MOST_STATE = 64


def show(found, area, name, config, ours, theirs, peer, unit, goal=None):
    missed = goal is not None and ours > goal
    found.append({"area": area, "name": name, "config": config, "physdma": ours, "peer": theirs,
                  "peer_name": peer, "unit": unit, "goal": goal, "missed": missed,
                  "ratio": round(ours / theirs, 5) if theirs else None})
    print(f"{name:34}{config:40}{ours:>9}{theirs if theirs is not None else '-':>12}"
          f"{'' if goal is None else goal:>9}{' missed' if missed else '':8} {unit}", flush=True)


def requests(found):
    """What the benchmark module says of sizes, in a machine with both drivers."""
    machine = Machine(iommu="off", devices=[PciTestdev(), Ssd(), Ssd()],
                      append=["kunit.autorun=0"])
    with Vm(machine, "bench/sizes", limit=120) as vm:
        for driver, ssd in zip(("rnvme", "nvme"), machine.devices[1:]):
            vm.sh(f"echo {driver} > /sys/bus/pci/devices/{machine.address(ssd)}/driver_override")
        for driver in "rnvme", "nvme":
            vm.load(driver)
        vm.sh("for try in $(seq 100); do [ -b /dev/rnvme0n1 ] && [ -b /dev/nvme0n1 ] && exit; "
              "sleep 0.1; done; exit 1")
        vm.load("physdma_bench", "sizes=1")
        vm.wait_for("physdma_bench: (done|failed)")
        said = re.findall(r"physdma_bench: bytes\|([^|]+)\|(\d+)\|(\d+)", vm.log())
        if len(said) != 3:
            sys.exit(f"bench: sizes are missing, see {vm.console}")
        for what, ours, theirs in said:
            goal = MOST_STATE if what == "mapping state of a request" else None
            show(found, "bytes", what, "", int(ours), int(theirs), "C", "bytes", goal)


def bars(found):
    """What it takes to lend a BAR of a device."""
    devices = [Ivshmem(size_mb=1024 * size) for size in GB]
    machine = Machine(iommu="off", memory="2G", devices=devices, append=["kunit.autorun=0"])
    with Vm(machine, "bench/bars", limit=500) as vm:
        vm.sh("echo 0 > /sys/bus/pci/drivers_autoprobe")
        t = SimpleNamespace(vm=vm, machine=machine)
        taken = {}
        for driver in "physdma_ivshmem", "physdma_pages":
            vm.load(driver)
            for size, device in zip(GB, devices):
                taken[driver, size] = binding(t, driver, device)
            vm.unload(driver)
        for size in GB:
            (objects, pages, seconds), theirs = (
                taken[driver, size] for driver in ("physdma_ivshmem", "physdma_pages"))
            config = f"{size} GiB"
            show(found, "bytes", "memory to lend a BAR", config, objects + pages,
                 theirs[0] + theirs[1], "with pages", "bytes")
            show(found, "bytes", "time to lend a BAR", config, round(seconds * 1000),
                 round(theirs[2] * 1000), "with pages", "ms, to 10")


def rows():
    found = []
    print(f"\n{'sizes':34}{'':40}{'physdma':>9}{'C':>12}{'most':>9}")
    requests(found)
    bars(found)
    return found
