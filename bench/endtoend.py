# SPDX-License-Identifier: GPL-2.0
"""rnvme beside the kernel's C nvme, end to end: both in one machine, each with
identical disks, in turn.

What a row is of is chosen so that each two settings meet once at least (kind of
I/O, depth, IOMMU, processors). A pair is one run of either; a row has the median
of its pairs' ratios, and how far the middle half of them is apart.
"""

import re
import sys
from itertools import groupby
from math import sqrt
from statistics import median, quantiles

from harness.topology import Ivshmem, Machine, Ssd
from harness.vm import Vm

PAIRS = 10
SECONDS = 1.0
# Two runs may differ by so much where time is instructions.
REPEATS = 0.02

# Of fio, and what it is called.
KINDS = [("randread", "4k"), ("randwrite", "4k"), ("read", "128k")]
DEPTHS = [1, 32, 128]
MODES = ["off", "lazy", "strict"]

# (IOMMU, processors, kind, depth): each two settings meet.
ROWS = sorted((MODES[(kind + depth) % 3], 1 + (kind + 2 * depth) % 3 % 2, KINDS[kind], DEPTHS[depth])
              for kind in range(3) for depth in range(3))

DRIVERS = ["rnvme", "nvme"]
IO = "/sys/kernel/debug/physdma_bios/io"
MB = 1 << 20
COPY_MB = 512

# Prints seconds, ticks in which the processors were busy, and what a disk has done.
SAMPLE = """
sample() {
    read -r uptime rest < /proc/uptime
    read -r cpu user nice system idle iowait irq softirq rest < /proc/stat
    read -r reads merged sectors ticks writes rest < /sys/block/$1/stat
    echo "sample $uptime $((user + nice + system + irq + softirq)) $((reads + writes))"
}
"""
TICKS = 100  # a second


class Stack:
    """One of the two drivers, and its disks."""

    def __init__(self, vm, machine, name, ssds):
        self.vm = vm
        self.name = name
        vm.load(name)
        self.disks = [self.disk(machine.address(ssd)) for ssd in ssds]
        if not all(disk.startswith(name) for disk in self.disks):
            sys.exit(f"bench: {name} has not its disks, but {self.disks}")

    def disk(self, address):
        return self.vm.sh(
            "for try in $(seq 100); do for disk in /sys/block/*nvme*n1; do "
            f"case $(readlink -f $disk) in */{address}/*) echo ${{disk##*/}}; exit;; esac; "
            "done; sleep 0.1; done; exit 1").strip()

    def samples(self, command, during):
        """What SAMPLE says before and after `during`, while `command` runs, which is ended then:
        I/Os a second, and microseconds of a processor for each."""
        said = self.vm.sh(f"{SAMPLE}{command} & {during}; kill -INT $! || exit; wait", limit=60)
        (t0, busy0, ios0), (t1, busy1, ios1) = (
            tuple(float(word) for word in line) for line in
            re.findall(r"^sample (\S+) (\S+) (\S+)$", said, re.M))
        if ios1 <= ios0:
            sys.exit(f"bench: {self.name} did nothing: {said}")
        return (ios1 - ios0) / (t1 - t0), (busy1 - busy0) / TICKS * 1e6 / (ios1 - ios0)

    def fio(self, kind, depth, jobs):
        rw, size = kind
        disk = self.disks[0]
        # From when it is on its way.
        begun = f"until read -r r a b c w rest < /sys/block/{disk}/stat && " \
            f"[ $((r + w)) -gt $((begin + {50 * jobs})) ]; do sleep 0.05; done"
        return self.samples(
            f"read -r r a b c w rest < /sys/block/{disk}/stat; begin=$((r + w)); "
            f"fio --name=bench --filename=/dev/{disk} --direct=1 --ioengine=io_uring --rw={rw} "
            f"--bs={size} --iodepth={depth} --numjobs={jobs} --time_based --runtime=30 "
            "--norandommap --randrepeat=1 --output=/dev/null",
            f"{begun}; sleep 0.2; sample {disk}; sleep {SECONDS:g}; sample {disk}")

    def copy(self, first):
        """MiB a second from disk to disk, by bios, by way of memory of another device."""
        said = self.vm.sh(
            "set -e; read -r a rest < /proc/uptime; "
            f"echo copy /dev/{self.disks[0]} /dev/{self.disks[1]} {COPY_MB * MB} "
            f"{first:#x}:{4 * MB} 65536 1 | dd of={IO} bs=4k status=none; "
            "read -r b rest < /proc/uptime; echo $a $b", limit=60)
        begin, end = (float(word) for word in said.split())
        return COPY_MB / (end - begin)


def rates(vm, way, files, count, depth=32, size=4096, *words):
    """Nanoseconds for each read of so many bytes, into the same buffers again and again; for each of
    the files."""
    said = vm.sh(f"rnvme_rate {way} {files} {depth} {count} {size} {' '.join(words)}", limit=120)
    return [int(took) / int(done) for done, took in (line.split() for line in said.splitlines())]


def stacks_of(vm, machine, parts):
    """Both drivers, each with its part of the SSDs."""
    for name, ssds in zip(DRIVERS, parts):
        for ssd in ssds:
            vm.sh(f"echo {name} > /sys/bus/pci/devices/{machine.address(ssd)}/driver_override")
    return [Stack(vm, machine, name, ssds) for name, ssds in zip(DRIVERS, parts)]


class Ratios:
    """What the pairs of a row were measured to be."""

    def __init__(self):
        self.pairs = []

    def add(self, ours, theirs):
        self.pairs.append((ours, theirs))

    def row(self, area, name, config, unit, more_is_better):
        ratios = [ours / theirs for ours, theirs in self.pairs]
        low, _, high = quantiles(ratios, n=4)
        ratio = median(ratios)
        behind = 1 - ratio if more_is_better else ratio - 1
        # How far the median may be off, as the notches of a box plot have it.
        doubt = 1.57 * (high - low) / sqrt(len(ratios))
        if unit == "instructions":
            doubt = max(doubt, REPEATS)
        row = {
            "area": area, "name": name, "config": config,
            "physdma": round(median(ours for ours, _ in self.pairs), 2),
            "peer": round(median(theirs for _, theirs in self.pairs), 2),
            "peer_name": "C nvme", "unit": unit, "ratio": round(ratio, 3), "goal": 1.0,
            "spread": round(high - low, 3), "doubt": round(doubt, 3), "pairs": len(self.pairs),
            "missed": behind > doubt,
        }
        missed = " missed" if row["missed"] else ""
        print(f"{name:34}{config:40}{row['physdma']:>9.0f}{row['peer']:>9.0f}{ratio:>8.2f}"
              f"{high - low:>6.2f}{missed:8} {unit}", flush=True)
        return row


def in_turn(stacks):
    """Both, so often; who is first changes."""
    for pair in range(PAIRS):
        yield stacks if pair % 2 == 0 else stacks[::-1]


def fio_rows():
    rows = []
    for (mode, cpus), settings in groupby(ROWS, key=lambda row: row[:2]):
        machine = Machine(iommu=mode, cpus=cpus, host_files=True, append=["kunit.autorun=0"],
                          devices=[Ssd(size_mb=256), Ssd(size_mb=256)])
        with Vm(machine, f"bench/fio-{mode}-{cpus}", limit=1200) as vm:
            stacks = stacks_of(vm, machine, [[ssd] for ssd in machine.devices])
            for *_, kind, depth in settings:
                iops, cpu = Ratios(), Ratios()
                for first, second in in_turn(stacks):
                    measured = {stack.name: stack.fio(kind, depth, cpus)
                                for stack in (first, second)}
                    iops.add(measured["rnvme"][0], measured["nvme"][0])
                    cpu.add(measured["rnvme"][1], measured["nvme"][1])
                name = f"{kind[0]} {kind[1]}, depth {depth}"
                config = f"iommu={mode}, {cpus} CPU{'s' * (cpus > 1)}"
                rows.append(iops.row("end to end", name, config, "IOPS", True))
                rows.append(cpu.row("end to end", name, config, "µs of CPU per I/O", False))
            if vm.reports():
                sys.exit(f"bench: fio failed, see {vm.console}")
    return rows


# (bytes of a read, how many at a time, how many to measure). Of large reads one at a time: how many
# of more are answered at once, depends on the host.
READS = [(4096, 1, 1500), (4096, 32, 6000), (128 << 10, 1, 500)]


def instruction_rows():
    """A program's reads in a machine in which time is instructions: those of the whole system for
    each read, less what is left over. With the I/O scheduler that one queue has, and without."""
    rows = []
    for mode in MODES:
        # Without a medium: how long the host's files take is not guest time.
        machine = Machine(iommu=mode, devices=[Ssd(medium=False), Ssd(medium=False)], icount=True,
                          append=["kunit.autorun=0"])
        with Vm(machine, f"bench/reads-{mode}", limit=900) as vm:
            stacks = stacks_of(vm, machine, [[ssd] for ssd in machine.devices])
            for scheduler in "mq-deadline", "none":
                vm.sh(f"for disk in /sys/block/*nvme*n1; do echo {scheduler} > "
                      "$disk/queue/scheduler; done")
                for size, depth, count in READS:
                    taken = Ratios()
                    for pair in in_turn(stacks):
                        disks = ",".join(f"/dev/{stack.disks[0]}" for stack in pair)
                        took = rates(vm, "mapped", disks, count, depth, size, "instructions")
                        measured = dict(zip((stack.name for stack in pair), took))
                        taken.add(measured["rnvme"], measured["nvme"])
                    rows.append(taken.row("instructions of an I/O",
                                          f"read of {size >> 10} KiB, {depth} at a time",
                                          f"iommu={mode}, {scheduler}", "instructions", False))
            if vm.reports():
                sys.exit(f"bench: reading failed, see {vm.console}")
    return rows


def premapped_rows():
    """rnvme's registered buffers beside io_uring's, which the block layer has mapped for each."""
    rows = []
    for mode in MODES:
        machine = Machine(iommu=mode, devices=[Ssd(), Ssd()], append=["kunit.autorun=0"])
        with Vm(machine, f"bench/premapped-{mode}", limit=600) as vm:
            ours, theirs = stacks_of(vm, machine, [[ssd] for ssd in machine.devices])
            taken = Ratios()
            for first, _ in in_turn([ours, theirs]):
                measured = {}
                for stack in (ours, theirs) if first is ours else (theirs, ours):
                    way, file = ("premapped", stack.disks[0].removesuffix("n1")) \
                        if stack is ours else ("mapped", stack.disks[0])
                    took, = rates(vm, way, f"/dev/{file}", 10000)
                    measured[stack.name] = 1e9 / took
                taken.add(measured["rnvme"], measured["nvme"])
            rows.append(taken.row("end to end", "randread 4k, depth 32, premapped",
                                  f"iommu={mode}, 2 CPUs", "IOPS", True))
            if vm.reports():
                sys.exit(f"bench: reading failed, see {vm.console}")
    return rows


def p2p_rows():
    """From disk to disk by way of memory without pages."""
    rows = []
    for name, settings in {"bus address": dict(iommu="off", switch=True, cpu="Skylake-Client-v1"),
                           "host bridge": dict(iommu="strict")}.items():
        machine = Machine(devices=[*(Ssd(size_mb=COPY_MB) for _ in range(4)), Ivshmem(size_mb=16)],
                          append=["kunit.autorun=0"], **settings)
        with Vm(machine, f"bench/p2p-{name.split()[0]}", limit=600) as vm:
            for module in "physdma_ivshmem", "physdma_bios":
                vm.load(module)
            ssds = machine.devices[:4]
            stacks = stacks_of(vm, machine, (ssds[:2], ssds[2:]))
            line = vm.sh("sed -n 3p /sys/bus/pci/devices/"
                         f"{machine.address(machine.devices[4])}/resource")
            first = int(line.split()[0], 0)
            taken = Ratios()
            for one, other in in_turn(stacks):
                measured = {stack.name: stack.copy(first) for stack in (one, other)}
                taken.add(measured["rnvme"], measured["nvme"])
            rows.append(taken.row("end to end", "copy by bios of 64K, peer-to-peer",
                                  f"iommu={settings['iommu']}, {name}", "MiB/s", True))
            if vm.reports():
                sys.exit(f"bench: copying failed, see {vm.console}")
    return rows


def rows():
    print(f"\n{'end to end':34}{'':40}{'rnvme':>9}{'C nvme':>9}{'ratio':>8}{'spread':>6}")
    return instruction_rows() + fio_rows() + premapped_rows() + p2p_rows()
