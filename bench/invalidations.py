# SPDX-License-Identifier: GPL-2.0
"""What the IOMMU is asked to do for a request, by physdma and by the C stack: how
often caches are invalidated, as QEMU's model sees it, and how many ranges are
written to the page table, as the kernel's own tracepoints have it."""

import re
import sys

from harness.topology import Machine, PciTestdev
from harness.vm import Vm

TIMES = 16
SHAPES = 6      # of bench.c
TRACING = "/sys/kernel/tracing"


def count(vm, number, peer):
    """For each of TIMES requests: invalidations, ranges mapped, ranges unmapped; and the name of the
    shape."""
    begin = vm.trace.stat().st_size
    said = len(vm.log())
    vm.sh(f"cd {TRACING}; echo > trace; echo 1 > events/iommu/map/enable; "
          "echo 1 > events/iommu/unmap/enable")
    vm.load("physdma_bench", f"times={TIMES} shape={number} peer={peer}")
    name = vm.wait_for(r"physdma_bench: repeated\|([^|]+)\|(\d+)", after=said)[1]
    mapped, unmapped = (int(word) for word in vm.sh(
        f"cd {TRACING}; echo 0 > events/iommu/enable; grep -c ' map: ' trace; "
        "grep -c ' unmap: ' trace", check=False).split())
    vm.unload("physdma_bench")
    with open(vm.trace, errors="replace") as file:
        file.seek(begin)
        invalidations = len(re.findall("vtd_inv_desc_iotlb", file.read()))
    return name, [invalidations / TIMES, mapped / TIMES, unmapped / TIMES]


def rows():
    print(f"\n{'of the IOMMU, per request':34}{'':40}{'physdma':>9}{'C':>9}{'ratio':>8}{'goal':>6}")
    machine = Machine(iommu="strict", devices=[PciTestdev()], append=["kunit.autorun=0"],
                      trace=["vtd_inv_desc_iotlb*"])
    found = []
    with Vm(machine, "bench/invalidations", limit=300) as vm:
        for number in range(SHAPES):
            name, ours = count(vm, number, 0)
            _, theirs = count(vm, number, 1)
            if not all(ours + theirs):
                sys.exit(f"bench: the IOMMU was asked nothing for {name}: {ours}, {theirs}")
            for what, mine, other, goal in zip(
                    ("IOTLB invalidations", "ranges mapped", "ranges unmapped"), ours, theirs,
                    (1, None, None)):
                missed = goal is not None and mine > goal
                found.append({
                    "area": "IOMMU", "name": name, "config": f"iommu=strict, {what}",
                    "physdma": mine, "peer": other, "peer_name": "blk_rq_dma_map_iter",
                    "unit": "per request", "ratio": round(mine / other, 3),
                    "goal": goal, "missed": missed,
                })
                print(f"{name:34}{what:40}{mine:>9.1f}{other:>9.1f}{mine / other:>8.2f}"
                      f"{goal or '':>6}{' missed' if missed else ''}", flush=True)
        if vm.reports():
            sys.exit(f"bench: counting failed, see {vm.console}")
    return found
