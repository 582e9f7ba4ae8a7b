# SPDX-License-Identifier: GPL-2.0
"""Bios to memory that has no struct page: from SSD A by way of ivshmem's memory to
SSD B, on rnvme and on the C nvme of the same kernel, asked for as kernel code
does (tests/bios).

The modes are the machines: the memory has a bus address to the SSDs (one
switch), or is reached through the host bridge (root ports, strict IOMMU). The
host compares images and memory; QEMU's trace says by which addresses the SSDs
were told it.
"""

import os
import random
import re
import time

from harness.operator import rows
from harness.topology import Ivshmem, Machine, Ssd
from harness.vm import CommandError

KB, MB = 1 << 10, 1 << 20
# How much is copied in each way; in small bios, a sixteenth of it.
TOTAL = int(os.environ.get("SIZE_MB", "4")) * MB
WINDOW = 4 * MB
MACHINES = {
    "switch": (dict(switch=True, iommu="off", cpu="Skylake-Client-v1"), "bus address"),
    "ports": (dict(iommu="strict"), "host bridge"),
}
MODES = list(MACHINES)
LIMIT = 240 + TOTAL // MB * 2
DEBUGFS = "/sys/kernel/debug"
IO = f"{DEBUGFS}/physdma_bios/io"

# Bytes of a bio, and how many pieces it has. The last one is more than the SSD takes at once; in C
# the one before is told by a scatter gather list.
SHAPES = [(4 * KB, 1), (64 * KB, 1), (64 * KB, 16), (256 * KB, 4), (2 * MB, 1)]


def machine(mode):
    size = max(64, TOTAL // MB)
    return Machine(host_files=True, devices=[Ssd(size_mb=size), Ssd(size_mb=size), Ivshmem(size_mb=16),
                            Ivshmem(size_mb=1), Ssd(namespace_options={"ms": 8, "pi": 1})],
                   trace=["pci_nvme_map_addr*"], **MACHINES[mode][0])


class Memory:
    """The BAR of an ivshmem, where the guest has it."""

    def __init__(self, t, device):
        line = t.vm.sh(f"sed -n 3p /sys/bus/pci/devices/{t.machine.address(device)}/resource")
        first, last = (int(word, 0) for word in line.split()[:2])
        self.range = range(first, last + 1)
        self.file = device.memory

    def at(self, offset, size):
        return f"{self.range.start + offset:#x}:{size:#x}"


def sends(t, command, error=None):
    # What is refused is refused for whoever was handed the open file, too.
    for user in "", *(["setpriv --reuid=65534 --regid=65534 --clear-groups"] if error else []):
        try:
            # A shell's own echo may not say why it failed.
            t.vm.sh(f"echo {command} | {user} dd bs=4k status=none > {IO}", limit=LIMIT)
        except CommandError as raised:
            assert error and error in str(raised), f"{error}: {raised}"
        else:
            assert not error, f"{command} was not refused: {error}"


def same(path, other, size, at=0):
    with open(path, "rb") as one, open(other, "rb") as two:
        one.seek(at)
        two.seek(at)
        for place in range(0, size, MB):
            length = min(MB, size - place)
            data = one.read(length)
            assert len(set(data)) > 100, "there were no data"
            assert data == two.read(length), f"{path} and {other} differ in the MiB at {place:#x}"


def copies(t, driver, memory, way):
    a, b, *_ = t.machine.devices
    names = [t.disk(ssd) for ssd in (a, b)]
    assert all(name.startswith(f"/dev/{driver}") for name in names), names
    for size, pieces in SHAPES:
        total = max(TOTAL // (16 if size < 64 * KB else 1), size)
        with t.case(f"{driver}: bios of {size // KB} KiB in {pieces}, {total / MB:g} MiB"):
            with open(a.images[0], "r+b") as image:
                # As the host has it; what the guest has cached is not asked.
                data = random.Random(f"{driver} {size} {pieces}").randbytes(MB)
                for place in range(0, total, MB):
                    image.write(data[place // MB % MB:] + data[:place // MB % MB])
            begin = t.vm.trace.stat().st_size
            sends(t, f"copy {names[0]} {names[1]} {total} {memory.at(MB, WINDOW)} {size} {pieces}")
            same(a.images[0], b.images[0], total)
            # What the memory holds is the last that was moved, its pieces in reverse.
            last = (total - 1) // size * size
            slot = last // size % (WINDOW // size)
            with open(memory.file, "rb") as file, open(a.images[0], "rb") as image:
                file.seek(MB + slot * size)
                image.seek(last)
                found, expected = file.read(size), image.read(size)
            part = size // pieces
            parts = [expected[i:][:part] for i in range(0, size, part)]
            assert found == b"".join(reversed(parts)), "the memory has other data"

            with open(t.vm.trace, errors="replace") as file:
                file.seek(begin)
                told = [(int(address, 16), int(length)) for address, length in
                        re.findall(r"pci_nvme_map_addr addr 0x([0-9a-f]+) len (\d+)", file.read())]
            inside = sum(length for address, length in told if address in memory.range)
            assert sum(length for _, length in told) >= 2 * total, told
            assert inside == (2 * total if way == "bus address" else 0), \
                f"{inside} of {2 * total} bytes at the memory's own address"
    with t.case(f"{driver}: routes"):
        routes = t.vm.sh(f"cat {DEBUGFS}/physdma/routes")
        for ssd in a, b:
            line = re.search(rf"^\S+ +2 {t.machine.address(ssd)} +\d+ +(\d+) +(\d+) +(\d+) +(.*)$",
                             routes, re.M)
            assert int(line[1]) > len(SHAPES) and line[2] == line[3] == "0", line[0]
            assert line[4].startswith(way), line[0]
        # Nothing is kept.
        for line in t.vm.sh(f"cat {DEBUGFS}/physdma/providers").splitlines()[1:]:
            assert line.split()[6:9] == ["0", "0", "0"], line


def stacked(t, driver, disk, page):
    """Whoever stands on top of disks may look at what it hands on."""
    size = t.vm.sh(f"blockdev --getsz {disk}").strip()
    with t.case(f"{driver}: device mapper on top"):
        t.vm.sh("dmsetup --noudevsync create top "
                f"--table '0 {size} linear {disk} 0'")
        t.vm.sh("dd if=/dev/dm-0 of=/dev/null bs=4k count=1 iflag=direct status=none")
        sends(t, f"read /dev/dm-0 0 {page}", "Operation not supported")
        sends(t, f"write /dev/dm-0 0 {page}", "Operation not supported")
        t.vm.sh("dmsetup --noudevsync remove top")
    with t.case(f"{driver}: RAID on top"):
        # As mdadm --build does, which would need to be installed on the host.
        number = t.vm.sh(f"cat /sys/block/{disk.removeprefix('/dev/')}/dev").strip()
        t.vm.sh(f"""set -e
            echo md_{driver} > /sys/module/md_mod/parameters/new_array
            cd /sys/block/md_{driver}/md
            echo none > metadata_version; echo linear > level; echo 1 > raid_disks
            echo {number} > new_dev; cd dev-*; echo 0 > offset; echo {int(size) // 2} > size
            echo 0 > slot; cd ..; echo active > array_state""")
        t.vm.sh(f"dd if=/dev/md_{driver} of=/dev/null bs=4k count=1 iflag=direct status=none")
        sends(t, f"read /dev/md_{driver} 0 {page}", "Operation not supported")
        sends(t, f"write /dev/md_{driver} 0 {page}", "Operation not supported")
        t.vm.sh(f"echo clear > /sys/block/md_{driver}/md/array_state")


def refusals(t, driver, memory, other):
    a, b, large, _, checked = t.machine.devices
    disk = t.disk(a)
    sectors = int(t.vm.sh(f"cat /sys/block/{disk.removeprefix('/dev/')}/size"))
    page = memory.at(0, 4 * KB)
    stacked(t, driver, disk, page)
    with t.case(f"{driver}: forbidden uses"):
        pair = t.machine.address(large), 2, t.machine.address(a)
        before = rows(t)[pair][1][0]
        sends(t, f"read {disk} 0 {page}")
        # Those of C drivers count, too.
        assert rows(t)[pair][1] == [before + 1, 0, 0], rows(t)[pair]
        t.vm.sh(f"losetup /dev/loop0 {disk}")
        sends(t, f"read /dev/loop0 0 {page}", "Operation not supported")
        t.vm.sh("losetup -d /dev/loop0")
        if driver == "nvme":
            # It has integrity metadata, which the CPU would have to make and check.
            sends(t, f"read {t.disk(checked)} 0 {page}", "Operation not supported")
        size = len(memory.range)
        for error, command in (
                ("Input/output error", f"read {disk} {sectors} {page}"),
                ("Input/output error", f"read {disk} {sectors - 1} {page}"),
                # The end of the memory is within, and two providers' memory.
                ("Invalid argument", f"read {disk} 0 {memory.at(size - 2 * KB, 4 * KB)}"),
                ("Invalid argument", f"read {disk} 0 {page} {other.at(0, 4 * KB)}"),
                # RAM, what nobody has, and what is no address.
                ("Invalid argument", f"read {disk} 0 0x100000:0x1000"),
                ("Invalid argument", f"write {disk} 0 {page} 0x100000:0x1000"),
                ("Invalid argument", f"read {disk} 0 0xfffffffff000:0x1000"),
                ("Invalid argument", f"read {disk} 0 0xfffffffffffff000:0x1000"),
                ("Invalid argument", f"read {disk} 0 {memory.at(2, 4 * KB)}"),
                ("Invalid argument", f"read {disk} 0"),
                ("Input/output error", f"read {disk} 0 {memory.at(0, 256)}"),
        ):
            sends(t, command, error)
        same(a.images[0], b.images[0], 4 * KB)


def revoked(t, driver, memory):
    a, b, *_ = t.machine.devices
    names = [t.disk(ssd) for ssd in (a, b)]
    with t.case(f"{driver}: revoked in use"):
        line = f"copy {names[0]} {names[1]} {4 * MB} {memory.at(0, MB)} 65536 4"
        t.vm.sh(f"(while echo {line} | dd of={IO} bs=4k status=none; do echo; done "
                "> /tmp/copied 2> /tmp/why; "
                "touch /tmp/ended) > /dev/null 2>&1 &"
                "for try in $(seq 100); do [ -s /tmp/copied ] && exit; sleep 0.1; done; exit 1")
        # The last bio has ended when this returns.
        t.vm.unload("physdma_ivshmem")
        content = memory.file.read_bytes()
        t.vm.sh("for try in $(seq 100); do [ -e /tmp/ended ] && break; sleep 0.1; done; "
                "[ -e /tmp/ended ] && rm /tmp/ended /tmp/copied")
        why = t.vm.sh("cat /tmp/why")
        # On its way when it went, or afterwards.
        assert "No such device" in why or "Invalid argument" in why, why
        assert memory.file.read_bytes() == content, "the memory was written afterwards"
        t.vm.load("physdma_ivshmem")


def run(t):
    _, way = MACHINES[t.mode]
    a, b, large, small, checked = t.machine.devices
    with t.case("memory without pages"):
        t.vm.load("physdma")
        t.vm.load("physdma_ivshmem")
        t.vm.load("physdma_bios")
        t.vm.load("dm-mod")
        t.vm.load("linear")
        memory, other = Memory(t, large), Memory(t, small)
        zones = t.vm.sh("sed -n '/zone *Device/,/present/p' /proc/zoneinfo")
        assert re.search(r"present +0$", zones), zones
    started = time.monotonic()
    for driver in "rnvme", "nvme":
        with t.case(f"{driver}: load"):
            t.vm.load(driver)
            for ssd in a, b:
                t.disk(ssd)
        copies(t, driver, memory, way)
        refusals(t, driver, memory, other)
        revoked(t, driver, memory)
        with t.case(f"{driver}: unload"):
            t.vm.unload(*{"nvme": ["nvme", "nvme_core"]}.get(driver, [driver]))
    print(f"note    {t.suite}: {TOTAL // MB} MiB in each way, {time.monotonic() - started:.0f} s")
    with t.case("unload"):
        # No page was made, and none is left.
        assert "peer-to-peer DMA memory" not in t.vm.log()
        t.vm.unload("physdma_bios", "physdma_ivshmem", "physdma")
