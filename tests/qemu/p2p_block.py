# SPDX-License-Identifier: GPL-2.0
"""I/O to memory that has no struct page: SSDs to and from the memory of others
(a controller memory buffer, a persistent memory region, ivshmem) and their own,
alone and mixed with RAM, asked for as kernel code does.

The modes are the machines. The host compares the images. QEMU's trace says what
commands there were, and in how many segments each was told its memory, and at
which addresses; the driver's counters, by which way it was mapped.
"""

import re

from harness.topology import Ivshmem, Machine, Ssd
from harness.vm import CommandError

KB, MB = 1 << 10, 1 << 20
PAGE = 4 * KB
BLOCK = 512
INTEL = "Skylake-Client-v1"  # whose host bridge is not on the kernel's list
NOT_LISTED = "host bridge 8086:29c0 is not on the kernel's list"

# The machine, and how the SSDs reach the memory of the third one, and ivshmem's.
MACHINES = {
    "off": (dict(iommu="off"), "bridge", "bridge"),
    "passthrough": (dict(iommu="passthrough"), "bridge", "bridge"),
    "lazy": (dict(iommu="lazy"), "bridge", "bridge"),
    "strict": (dict(iommu="strict"), "bridge", "bridge"),
    "switch": (dict(iommu="off", switch=True, cpu=INTEL), "bus", "bus"),
    # Only ivshmem is not below the switch. QEMU's IOMMU would translate bus addresses too, so that
    # they come without one, or with one that lets them through.
    "both": (dict(iommu="off", switch=True), "bus", "bridge"),
    "both-passthrough": (dict(iommu="passthrough", switch=True), "bus", "bridge"),
    "refused": (dict(iommu="off", cpu=INTEL), None, None),
}
MODES = list(MACHINES)
DEBUGFS = "/sys/kernel/debug"
IO = f"{DEBUGFS}/rnvme/io"


def machine(mode):
    shape, *_ = MACHINES[mode]
    return Machine(devices=[Ssd(cmb_mb=4), Ssd(pmr_mb=4), Ssd(cmb_mb=16, pmr_mb=16),
                            Ivshmem(size_mb=16, port=not mode.startswith("both"))],
                   trace=["pci_nvme_map_addr*", "pci_nvme_read", "pci_nvme_write"], **shape)


class Memory:
    """A BAR, and how others than its own device reach it."""

    def __init__(self, t, address, bar, way):
        line = t.vm.sh(f"sed -n {bar + 1}p /sys/bus/pci/devices/{address}/resource")
        first, last = (int(word, 0) for word in line.split()[:2])
        self.range = range(first, last + 1)
        self.address = address
        self.bar = bar
        self.way = way

    def at(self, offset, size):
        return f"mem:{self.range[offset]:#x}:{size:#x}"


class Session:
    """The drivers from their loading to their unloading."""

    def __init__(self, t):
        self.t = t
        self.ssds = t.machine.devices[:3]
        self.expected = [{} for _ in self.ssds]
        t.load_driver()
        t.vm.load("physdma_ivshmem")
        t.vm.load("physdma")

    def move(self, ssd, op, at, *parts, commands):
        """Moves data between the byte `at` of the disk and memory. Each command is the way that
        its memory is mapped, and in how many segments. Where QEMU was told the memory is."""
        controller = re.search(r"rnvme(\d+)n", self.t.disk(ssd)).group(1)
        begin = len(self.t.vm.trace.read_text(errors="replace"))
        self.t.vm.sh(f"echo {controller} 1 {op} {at // BLOCK} {' '.join(parts)} > {IO}")
        trace = self.t.vm.trace.read_text(errors="replace")[begin:]
        _, *executed = re.split(rf"pci_nvme_{op} .*", trace)
        told = [[(int(address, 16), int(length)) for address, length in
                 re.findall(r"pci_nvme_map_addr addr 0x([0-9a-f]+) len (\d+)", one)]
                for one in executed]
        segments = [1 + sum(address + length != after for (address, length), (after, _) in
                            zip(one, one[1:])) for one in told]
        assert segments == [count for _, count in commands], f"{segments} segments: {trace}"

        counted = self.expected[self.ssds.index(ssd)]
        for way, count in commands:
            for key, more in ("requests", 1), ("segments", count), (way, 1):
                counted[key] = counted.get(key, 0) + more
        return [piece for one in told for piece in one]

    def end(self):
        """Unloads the drivers, and returns what was counted for each SSD."""
        at = len(self.t.vm.log())
        self.t.unload_driver()
        self.t.vm.unload("physdma_ivshmem", "physdma")
        log = self.t.vm.log()[at:]
        return [{key: int(value) for key, value in re.findall(
            r"(\w+)=(\d+)", re.search(rf"{self.t.machine.address(ssd)}: counters: (.*)", log)[1])}
            for ssd in self.ssds]


def ram(offset, size):
    return f"ram:{offset:#x}:{size:#x}"


def content(ssd, at, size):
    with open(ssd.images[0], "rb") as file:
        file.seek(at)
        return file.read(size)


def same(first, at, second, second_at, size):
    data = content(first, at, size)
    assert len(set(data)) > 100, "there were no data"
    assert data == content(second, second_at, size), f"{size} bytes at {at:#x} differ"


def run(t):
    shape, to_third, to_ivshmem = MACHINES[t.mode]
    a, b, c, _ = t.machine.devices
    # Whether the device's addresses are those of an IOMMU, which makes one range of pieces.
    translated = shape["iommu"] in ("lazy", "strict")

    with t.case("data"):
        # The same for each, so that what looking for partitions costs is the same too.
        session = Session(t)
        t.vm.sh(f"dd if=/dev/urandom of={t.disk(a)} bs=1M seek=1 count=8 oflag=direct 2>/dev/null")
        session.end()
    with t.case("what loading costs"):
        before = Session(t).end()

    session = Session(t)
    own = Memory(t, t.machine.address(a), 2, "internal")
    own_region = Memory(t, t.machine.address(b), 4, "internal")
    buffer = Memory(t, t.machine.address(c), 2, to_third)
    region = Memory(t, t.machine.address(c), 4, to_third)
    found = t.vm.sh("basename $(readlink -f /sys/bus/pci/drivers/physdma_ivshmem/0000:*)").strip()
    ivshmem = Memory(t, found, 2, to_ivshmem)
    memories = {"a memory buffer": buffer, "a memory region": region, "ivshmem": ivshmem}

    with t.case("own memory"):
        told = session.move(a, "read", 3 * MB, own.at(0, 64 * KB), commands=[("internal", 1)])
        told += session.move(a, "write", 18 * MB, own.at(0, 64 * KB), commands=[("internal", 1)])
        same(a, 3 * MB, a, 18 * MB, 64 * KB)
        # By its bus address, and QEMU knows it as its own.
        assert all(address in own.range for address, _ in told), told
    with t.case("own persistent memory"):
        session.move(a, "read", 3 * MB, ram(0, 64 * KB), commands=[("single", 1)])
        session.move(b, "write", 12 * MB, ram(0, 64 * KB), commands=[("single", 1)])
        told = session.move(b, "read", 12 * MB, own_region.at(MB, 64 * KB),
                            commands=[("internal", 1)])
        session.move(b, "write", 13 * MB, own_region.at(MB, 64 * KB), commands=[("internal", 1)])
        same(a, 3 * MB, b, 13 * MB, 64 * KB)
        assert all(address in own_region.range for address, _ in told), told

    if t.mode == "refused":
        refused(t, session, memories)
    else:
        allowed(t, session, memories, own, translated)

    with t.case("not to be cut"):
        at = len(t.vm.log())
        for error, parts in (
                # Where the kind changes, no block ends.
                ("Invalid argument", [ram(0, 256), own.at(0, 256)]),
                ("Invalid argument", [ram(2, 512)]),
                ("Bad address", ["mem:0x100000:0x1000"])):
            fails(session, error, a, *parts)
        assert len(re.findall("memory cannot be cut", t.vm.log()[at:])) == 2
    with t.case("ways"):
        for ssd, base, after, expected in zip("ABC", before, session.end(), session.expected):
            # What looking for partitions costs is in both.
            counted = {key: after[key] - base[key] for key in after if key not in
                       ("bytes", "spilled") and after[key] != base[key]}
            assert counted == expected, f"{ssd}: {counted}, not {expected}"
    with t.case("QEMU's own view"):
        t.vm.power_off()
        told = re.findall(r"pci_nvme_map_addr_cmb addr 0x[0-9a-f]+ len (\d+)", t.vm.trace.read_text())
        own = sum(map(int, told))
        # 64 KiB and, where there are others to mix it with, 8 KiB; both ways.
        assert own == 2 * (64 + 8 * (t.mode != "refused")) * KB, f"{own} bytes of own buffers"


def fails(session, error, ssd, *parts):
    try:
        session.move(ssd, "read", MB, *parts, commands=[])
    except CommandError as raised:
        assert error in str(raised), raised
    else:
        raise AssertionError(f"{parts} were not refused")


def allowed(t, session, memories, own, translated):
    a, b, *_ = t.machine.devices
    place = 16 * MB

    def way(memory, pieces=1):
        """How so many pieces of one memory are mapped."""
        if memory.way == "bus":
            return "bus", pieces
        if pieces == 1:
            return "single", 1
        return ("iova_ranges", 1) if translated else ("piecewise", pieces)

    for name, memory in memories.items():
        with t.case(f"SSD to SSD by {name}"):
            part = memory.at(0, 256 * KB)
            told = session.move(a, "read", MB, part, commands=[way(memory)])
            told += session.move(b, "write", place, part, commands=[way(memory)])
            same(a, MB, b, place, 256 * KB)
            inside = sum(length for address, length in told if address in memory.range)
            expected = 0 if translated and memory.way == "bridge" else 2 * 256 * KB
            assert inside == expected, f"{inside} bytes at the memory's own addresses: {told}"
            place += MB
        with t.case(f"scattered over {name}"):
            pieces = [memory.at(MB + page * PAGE, PAGE) for page in (3, 1, 5)]
            session.move(a, "read", 2 * MB, *pieces, commands=[way(memory, 3)])
            session.move(b, "write", place, *pieces, commands=[way(memory, 3)])
            same(a, 2 * MB, b, place, 3 * PAGE)
            place += MB

    buffer, ivshmem = memories["a memory buffer"], memories["ivshmem"]
    with t.case("longer than a command"):
        part = buffer.at(4 * MB, 1280 * KB)
        session.move(a, "read", 6 * MB, part, commands=[way(buffer)] * 3)
        session.move(b, "write", place, part, commands=[way(buffer)] * 3)
        same(a, 6 * MB, b, place, 1280 * KB)
        place += 2 * MB
    with t.case("all kinds in one request"):
        # What lies one behind the other is one piece.
        parts = [ram(0, PAGE), ivshmem.at(2 * MB, PAGE), ram(8 * PAGE, PAGE),
                 buffer.at(2 * MB, PAGE), buffer.at(2 * MB + PAGE, PAGE),
                 ivshmem.at(3 * MB, PAGE), ivshmem.at(3 * MB + PAGE, PAGE), ram(16 * PAGE, PAGE)]
        # All that the IOMMU maps is one segment.
        segments = 1 if translated else 6
        session.move(a, "read", 4 * MB, *parts, commands=[("mixed", segments)])
        session.move(b, "write", place, *parts, commands=[("mixed", segments)])
        same(a, 4 * MB, b, place, 8 * PAGE)
        place += MB
    with t.case("cut at own memory"):
        parts = [ram(32 * PAGE, PAGE), buffer.at(5 * MB, PAGE), ivshmem.at(5 * MB, PAGE),
                 own.at(MB, PAGE), own.at(MB + PAGE, PAGE), ram(40 * PAGE, PAGE)]
        # The device would refuse a command that has both.
        segments = 1 if translated else 3
        commands = [("mixed", segments), ("internal", 1), ("single", 1)]
        session.move(a, "read", 5 * MB, *parts, commands=commands)
        session.move(a, "write", 32 * MB, *parts, commands=commands)
        same(a, 5 * MB, a, 32 * MB, 6 * PAGE)


def refused(t, session, memories):
    a, b, *_ = t.machine.devices
    routes = f"{DEBUGFS}/physdma/routes"
    for name, memory in memories.items():
        with t.case(f"refused: {name}"):
            client = t.machine.address(a)
            line = rf"{memory.address} +{memory.bar} {client} .* (\d+) +refused: {NOT_LISTED}.*"
            # Whoever looks knows before anybody tries.
            assert re.search(line, t.vm.sh(f"cat {routes}"))[1] == "0"
            at = len(t.vm.log())
            fails(session, "Invalid argument", a, memory.at(0, PAGE))
            fails(session, "Invalid argument", a, ram(0, PAGE), memory.at(0, PAGE))
            assert re.search(line, t.vm.sh(f"cat {routes}"))[1] == "2"
            t.vm.wait_for(f"{client}: no DMA to memory of {memory.address}: {NOT_LISTED}", 5, at)
