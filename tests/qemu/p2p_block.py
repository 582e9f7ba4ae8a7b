# SPDX-License-Identifier: GPL-2.0
"""I/O to memory that has no struct page: SSDs to and from the memory of another
SSD and their own, alone and mixed with RAM, asked for as kernel code does.

The host compares the images. How the data went, and in how many segments, the
driver's counters say; which of it QEMU found in the controller's own memory,
QEMU's trace.
"""

import re

from harness.topology import Machine, Ssd
from harness.vm import CommandError

KB, MB = 1 << 10, 1 << 20
BLOCK = 512
INTEL = "Skylake-Client-v1"  # whose host bridge is not on the kernel's list

# The machine, and whether what the device maps becomes one range, and whether
# the other SSD's memory has a bus address.
MACHINES = {
    "off": (dict(iommu="off"), False, False),
    "strict": (dict(iommu="strict"), True, False),
    "switch": (dict(iommu="off", switch=True, cpu=INTEL), False, True),
}
MODES = list(MACHINES)
IO = "/sys/kernel/debug/rnvme/io"


def machine(mode):
    return Machine(devices=[Ssd(cmb_mb=4), Ssd(), Ssd(cmb_mb=16)],
                   trace=["pci_nvme_map_addr_cmb"], **MACHINES[mode][0])


class Session:
    """The driver from its loading to its unloading."""

    def __init__(self, t):
        self.t = t
        t.load_driver()
        t.vm.sh("mount -t debugfs none /sys/kernel/debug 2>/dev/null; true")

    def memory(self, ssd, offset, size):
        """A part of the memory buffer of this SSD."""
        line = self.t.vm.sh(
            f"sed -n 3p /sys/bus/pci/devices/{self.t.machine.address(ssd)}/resource")
        return f"mem:{int(line.split()[0], 0) + offset:#x}:{size:#x}"

    def move(self, ssd, op, at, *parts):
        """Moves data between the byte `at` of the disk and memory."""
        controller = re.search(r"rnvme(\d+)n", self.t.disk(ssd)).group(1)
        self.t.vm.sh(f"echo {controller} 1 {op} {at // BLOCK} {' '.join(parts)} > {IO}")

    def end(self):
        """Unloads the driver, and returns what it counted for each SSD."""
        at = len(self.t.vm.log())
        self.t.unload_driver()
        log = self.t.vm.log()[at:]
        return [{key: int(value) for key, value in re.findall(
            r"(\w+)=(\d+)", re.search(rf"{self.t.machine.address(ssd)}: counters: (.*)", log)[1])}
            for ssd in self.t.machine.devices]


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
    _, one_range, bus = MACHINES[t.mode]
    a, b, c = t.machine.devices

    with t.case("data"):
        # The same for each, so that what looking for partitions costs is the same too.
        session = Session(t)
        t.vm.sh(f"dd if=/dev/urandom of={t.disk(a)} bs=1M seek=1 count=8 oflag=direct 2>/dev/null")
        session.end()
    with t.case("what loading costs"):
        before = Session(t).end()

    session = Session(t)
    with t.case("SSD to SSD by the memory of a third"):
        memory = session.memory(c, 0, 256 * KB)
        session.move(a, "read", MB, memory)
        session.move(b, "write", 16 * MB, memory)
        same(a, MB, b, 16 * MB, 256 * KB)
    with t.case("scattered"):
        pieces = [session.memory(c, MB + page * 4 * KB, 4 * KB) for page in (3, 1, 5)]
        session.move(a, "read", 2 * MB, *pieces)
        session.move(b, "write", 17 * MB, *pieces)
        same(a, 2 * MB, b, 17 * MB, 12 * KB)
    with t.case("own memory"):
        own = session.memory(a, 0, 64 * KB)
        session.move(a, "read", 3 * MB, own)
        session.move(a, "write", 18 * MB, own)
        same(a, 3 * MB, a, 18 * MB, 64 * KB)
    with t.case("mixed with RAM"):
        parts = [ram(0, 8 * KB), session.memory(c, 2 * MB, 8 * KB), ram(32 * KB, 8 * KB)]
        session.move(a, "read", 4 * MB, *parts)
        session.move(b, "write", 19 * MB, *parts)
        same(a, 4 * MB, b, 19 * MB, 24 * KB)
    with t.case("mixed with RAM and own memory"):
        parts = [ram(64 * KB, 4 * KB), session.memory(c, 3 * MB, 4 * KB),
                 session.memory(a, MB, 8 * KB), ram(128 * KB, 4 * KB)]
        session.move(a, "read", 5 * MB, *parts)
        session.move(a, "write", 20 * MB, *parts)
        same(a, 5 * MB, a, 20 * MB, 20 * KB)
    with t.case("longer than a command"):
        memory = session.memory(c, 4 * MB, 1280 * KB)
        session.move(a, "read", 6 * MB, memory)
        session.move(b, "write", 21 * MB, memory)
        same(a, 6 * MB, b, 21 * MB, 1280 * KB)
    with t.case("refused"):
        for error, parts in (
                # Where the kind changes, no block ends.
                ("Invalid argument", [ram(0, 256), session.memory(a, 0, 256)]),
                ("Invalid argument", [ram(2, 512)]),
                ("Bad address", ["mem:0x100000:0x1000"])):
            try:
                session.move(a, "read", MB, *parts)
                raise AssertionError(f"{parts} were not refused")
            except CommandError as raised:
                assert error in str(raised), raised
        assert len(re.findall("memory cannot be cut", t.vm.log())) == 2

    with t.case("routes and segments"):
        counted = [{key: after[key] - base[key] for key in after}
                   for base, after in zip(before, session.end())]
        # Pieces that can become one range, and those that cannot.
        three, two = (1, 1) if one_range else (3, 2)
        mixed_three = 1 if one_range else 3
        expected = {
            # Of A: 256 KiB; scattered; own twice; mixed; three commands twice; 512, 512, 256 KiB.
            "requests": (1 + 1 + 2 + 1 + 6 + 3, 1 + 1 + 1 + 3, 0),
            "segments": (1 + three + 2 + mixed_three + 2 * (two + 1 + 1) + 3,
                         1 + three + mixed_three + 3, 0),
            "internal": (4, 0, 0),
            "bus": (5, 5, 0) if bus else (0, 0, 0),
            "mixed": (3, 1, 0),
        }
        for key, values in expected.items():
            found = tuple(ssd[key] for ssd in counted)
            assert found == values, f"{key}: {found}, not {values}: {counted}"
    with t.case("QEMU's own view"):
        t.vm.power_off()
        pages = len(re.findall("pci_nvme_map_addr_cmb", t.vm.trace.read_text()))
        # Of 64 KiB and of 8 KiB, both ways.
        assert pages == 2 * (16 + 2), f"{pages} pages of controllers' own memory"
