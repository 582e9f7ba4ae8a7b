# SPDX-License-Identifier: GPL-2.0
"""What physdma costs beside the C stack, in instructions: the benchmark module in
a machine in which time is instructions, for each IOMMU mode."""

import re
import sys
from pathlib import Path
from statistics import median

from harness import BUILD
from harness.topology import Ivshmem, Machine, PciTestdev, Ssd
from harness.vm import Vm

ROW = re.compile(r"physdma_bench: row\|(?P<name>[^|]+)\|(?P<what>[^|]+)\|(?P<ours>\d+)\|"
                 r"(?P<ours_spread>\d+)\|(?P<segments>\d+)\|(?P<peer>[^|]+)\|(?P<theirs>\d+)\|"
                 r"(?P<theirs_spread>\d+)\|(?P<peer_segments>\d+)")
LOOKUP = re.compile(r"physdma_bench: lookup\|(?P<name>[^|]+)\|(?P<ranges>\d+)\|(?P<depth>\d+)\|"
                    r"(?P<ours>\d+)\|(?P<theirs>\d+)")

PREMAPPED = re.compile(r"physdma_bench: premapped\|(?P<name>[^|]+)\|(?P<what>[^|]+)\|"
                       r"(?P<ours>\d+)\|(?P<mapped>\d+)")

# What we want of the C stack's instructions, at most, by route.
GOALS = {"RAM": 1.0, "bus address": 0.8, "host bridge": 1.0, "internal": 1.0}

# A slice of a buffer that is mapped: to take it, its first segment, to drop it.
MOST_PREMAPPED = 30

# With no provider a look-up is a no-op that is patched when there is one.
MOST_WITHOUT_PROVIDERS = 5

# How much the same may differ from boot to boot.
EXACT = 1.002

# Kernels with the 12 bytes of a bvec, and with the 16 of one that knows its kind.
KERNEL, KIND = BUILD / "kernel", BUILD / "kernel-kind"


def bench(machine: Machine, name: str, prepare=lambda vm: None, parameters: str = "",
          kernel: Path = KERNEL, icount: bool = True) -> str:
    """Runs the benchmark in a machine, where time is instructions unless told otherwise. Returns
    its log."""
    machine.icount = icount
    machine.append.append("kunit.autorun=0")
    name = f"bench/{name}{'-kind' if kernel == KIND else ''}"
    with Vm(machine, name, kernel=kernel, limit=560) as vm:
        prepare(vm)
        vm.load("physdma_bench", parameters)
        vm.wait_for("physdma_bench: (done|failed)", limit=540)
        log = vm.log()
        if "physdma_bench: done" not in log or vm.reports():
            sys.exit(f"bench: the run {name} failed, see {vm.console}")
    return log


def map_rows(log: str, config: str, route: str, kernel: Path = KERNEL) -> list[dict]:
    """What mapping costs: the rows of one machine, in which memory of another
    device is reached by this route."""
    rows = []
    config += ", bvecs with kind" if kernel == KIND else ""
    for row in ROW.finditer(log):
        way = "internal" if row["what"].startswith("own") else "RAM" if row["what"] == "RAM" \
            else route
        ours, theirs = int(row["ours"]), int(row["theirs"])
        missed = ours > GOALS[way] * theirs
        rows.append({
            "area": "map+unmap",
            "name": row["name"],
            "config": f"iommu={config}, {way}" + row["what"].removeprefix("RAM")
                      .removeprefix("own").removeprefix("other's"),
            "physdma": ours,
            "peer": theirs,
            "peer_name": row["peer"],
            "unit": "instructions",
            "ratio": round(ours / theirs, 3),
            "goal": GOALS[way],
            "missed": missed,
            "spread": round(max(int(row["ours_spread"]) / ours,
                                int(row["theirs_spread"]) / theirs), 3),
        })
        print(f"{row['name']:34}{rows[-1]['config'].removeprefix('iommu='):40}{ours:>9}"
              f"{theirs:>9}{ours / theirs:>8.2f}{GOALS[way]:>6}{' missed' if missed else '':8}"
              f"{row['segments']:>4}{row['peer_segments']:>5}", flush=True)
    if not rows:
        sys.exit(f"bench: no rows of {config}, {route}")
    return rows + premapped_rows(log, config, route)


def premapped_rows(log: str, config: str, route: str) -> list[dict]:
    """What a request's memory costs that is a slice of a buffer mapped before."""
    rows = []
    for row in PREMAPPED.finditer(log):
        ours, mapped = int(row["ours"]) / 100, int(row["mapped"]) / 100
        way = "internal" if row["what"].startswith("own") else "RAM" if row["what"] == "RAM" \
            else route
        missed = ours > MOST_PREMAPPED
        rows.append({
            "area": "premapped",
            "name": row["name"],
            "config": f"iommu={config}, {way}",
            "physdma": ours,
            "peer": mapped,
            "peer_name": "map + unmap by physdma",
            "unit": "instructions",
            "ratio": round(ours / mapped, 4),
            "goal": MOST_PREMAPPED,
            "missed": missed,
        })
        print(f"{row['name'] + ', premapped':34}{rows[-1]['config'].removeprefix('iommu='):40}"
              f"{ours:>9.1f}{mapped:>9.0f}{ours / mapped:>8.3f}{MOST_PREMAPPED:>6}"
              f"{' missed' if missed else ''}",
              flush=True)
    if not rows:
        sys.exit(f"bench: no premapped rows of {config}, {route}")
    return rows


def ram(mode: str, kernel: Path = KERNEL) -> list[dict]:
    """RAM, with no provider."""
    machine = Machine(iommu=mode, devices=[PciTestdev()])
    return map_rows(bench(machine, mode, kernel=kernel), mode, "RAM", kernel)


def peer_to_peer(mode: str, switch: bool, kernel: Path = KERNEL) -> list[dict]:
    """Memory of another device, with pages and without, and the client's own."""
    paged, pageless = Ivshmem(size_mb=2), Ivshmem(size_mb=2)
    machine = Machine(iommu=mode, switch=switch, devices=[PciTestdev(port=True), paged, pageless])

    def prepare(vm):
        vm.sh("echo 0 > /sys/bus/pci/drivers_autoprobe")
        for driver, device in ("physdma_pages", paged), ("physdma_ivshmem", pageless):
            vm.load(driver)
            vm.sh(f"echo {machine.address(device)} > /sys/bus/pci/drivers/{driver}/bind")
        vm.sh("echo 1 > /sys/bus/pci/drivers_autoprobe")

    route = "bus address" if switch else "host bridge"
    log = bench(machine, f"p2p-{'switch' if switch else 'ports'}-{mode}", prepare, kernel=kernel)
    return map_rows(log, mode, route, kernel)


# Through which windows one can look, and how they are opened.
WINDOWS = {
    "physdma.ko is loaded, nobody looks": "",
    "all events are recorded": "echo 1 > /sys/kernel/tracing/events/physdma/enable",
}


def windows() -> list[dict]:
    """RAM without an IOMMU again, where an operator could look at it, and where one does."""
    def costs(name, prepare):
        log = bench(Machine(iommu="off", devices=[PciTestdev()]), f"window-{name}", prepare)
        return {row["name"]: int(row["ours"]) for row in ROW.finditer(log)}

    rows = []
    closed = costs("closed", lambda vm: None)
    print(f"\n{'map + unmap':34}{'who looks':40}{'physdma':>9}{'closed':>9}{'ratio':>8}")
    for number, (config, opening) in enumerate(WINDOWS.items()):
        def prepare(vm):
            vm.load("physdma")
            vm.sh(opening)

        for name, cost in costs(number, prepare).items():
            rows.append({
                "area": "windows", "name": name, "config": config,
                "physdma": cost, "peer": closed[name], "peer_name": "without physdma.ko",
                "unit": "instructions", "ratio": round(cost / closed[name], 2),
                "goal": None if opening else 1.0,
                "missed": not opening and cost > closed[name] * EXACT,
            })
            print(f"{name:34}{config:40}{cost:>9}{closed[name]:>9}{cost / closed[name]:>8.2f}",
                  flush=True)
    return rows


def look_ups() -> list[dict]:
    """What it costs to find out whose memory an address is."""
    print(f"\n{'look-up':34}{'ranges':>8}{'depth':>6}{'physdma':>10}{'C tree':>9}{'a level':>9}")
    # In the background: nobody waits until the ranges are taken back.
    log = bench(Machine(iommu="off", devices=[PciTestdev(memory_mb=32)]), "lookups",
                parameters="lookups=1 > /dev/null 2>&1 &")
    rows, level = [], {}
    for row in LOOKUP.finditer(log):
        ranges, depth = int(row["ranges"]), int(row["depth"])
        ours, theirs = int(row["ours"]) / 100, int(row["theirs"]) / 100
        name = "RAM" if row["name"] == "RAM" else "a provider's memory"
        rows.append({
            "area": "look-up",
            "name": name,
            "config": f"{ranges} ranges, tree of depth {depth}",
            "physdma": ours,
            "peer": theirs or None,
            "peer_name": "mtree_load()",
            "unit": "instructions",
            "ratio": round(ours / theirs, 3) if theirs else None,
        })
        if name != "RAM":
            level[ranges] = ours / depth
        print(f"{name:34}{ranges:>8}{depth:>6}{ours:>10.1f}"
              + (f"{theirs:>9.1f}{level[ranges]:>9.1f}" if theirs else ""), flush=True)
    none = next(row["physdma"] for row in rows if row["config"].startswith("0 "))
    if none > MOST_WITHOUT_PROVIDERS:
        sys.exit(f"bench: with no provider a look-up costs {none} instructions, "
                 f"not {MOST_WITHOUT_PROVIDERS}")
    if list(level) != [1, 16, 1024, 65536]:
        sys.exit(f"bench: looked up among {list(level)} ranges")
    if max(level.values()) > level[1]:
        sys.exit(f"bench: a look-up grows faster than the tree's depth: {level}")
    return rows


def rate(icount: bool, count: int, times: int) -> dict[str, float]:
    """Reads of a program from rnvme behind a strict IOMMU, 4 KiB each, 32 at a time, into memory
    that is mapped for each or was mapped before: the nanoseconds for each read, of which one is
    one instruction with `icount`. Both take turns; the median."""
    machine = Machine(iommu="strict", devices=[Ssd()], icount=icount, append=["kunit.autorun=0"])
    files = {"mapped": "/dev/rnvme0n1", "premapped": "/dev/rnvme0"}
    measured: dict[str, list[float]] = {way: [] for way in files}
    with Vm(machine, f"bench/rate-{'instructions' if icount else 'time'}", limit=300) as vm:
        vm.load("rnvme")
        vm.sh("for try in $(seq 100); do [ -b /dev/rnvme0n1 ] && exit; sleep 0.1; done; exit 1")
        for way in [*files] * times:
            done, took = (int(word) for word in
                          vm.sh(f"rnvme_rate {way} {files[way]} 32 {count} 4096 "
                                f"{'instructions' if icount else ''}", limit=120).split())
            measured[way].append(took / done)
        if vm.reports():
            sys.exit(f"bench: reading failed, see {vm.console}")
    return {way: median(values) for way, values in measured.items()}


def premapped_reads() -> list[dict]:
    """What it brings a program to have its memory mapped once, and to pass by the block layer's
    front. `ratio` is that of what is measured: fewer instructions are better, and more reads."""
    rows = []
    print(f"\n{'reads of 4K, 32 at a time':34}{'':40}{'premapped':>9}{'mapped':>9}{'ratio':>8}")
    for name, unit, cost in (
            ("guest instructions per read", "instructions",
             rate(icount=True, count=10000, times=3)),
            ("reads per second", "IOPS",
             {way: 1e9 / each for way, each in rate(icount=False, count=20000, times=5).items()})):
        ours, mapped = cost["premapped"], cost["mapped"]
        rows.append({
            "area": "premapped reads", "name": name, "config": "iommu=strict, RAM",
            "physdma": round(ours), "peer": round(mapped), "peer_name": "mapped for each read",
            "unit": unit, "ratio": round(ours / mapped, 3),
        })
        print(f"{name:34}{'strict, RAM':40}{ours:>9.0f}{mapped:>9.0f}{ours / mapped:>8.2f}")
    return rows


def rows() -> list[dict]:
    print(f"{'map + unmap':34}{'IOMMU, route, memory':40}{'physdma':>9}{'C':>9}{'ratio':>8}"
          f"{'goal':>6}{'':8}{'segs':>4}{'C':>5}")
    found = [row for mode in ["off", "passthrough", "lazy", "strict"] for row in ram(mode)]
    for mode in ["off", "strict"]:
        found += peer_to_peer(mode, switch=True)
    for mode in ["off", "passthrough", "lazy", "strict"]:
        found += peer_to_peer(mode, switch=False)
    return found


def with_kind() -> list[dict]:
    """The same, where a bvec says what it is."""
    found = ram("off", KIND) + ram("strict", KIND)
    return found + peer_to_peer("off", True, KIND) + peer_to_peer("strict", False, KIND)
