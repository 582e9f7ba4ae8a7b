# SPDX-License-Identifier: GPL-2.0
"""The kernel's C nvme, and scattered memory with pages of an SSD below the same
switch, told to the SSD by a scatter gather list.

The tag of the request has had one before whose memory an IOMMU made one range.
What is left of that must not be read as the next request's, or the SSD is told
one piece that is as long as all of them. What the SSD was told is in QEMU's
trace. The data do not arrive: QEMU sends all DMA through the IOMMU, also what a
switch would have passed on, and the IOMMU does not know these addresses.
"""

import random
import re

from harness.topology import Machine, Ssd

MODES = ["strict"]
DRIVERS = ["nvme"]
PIECE = 8 << 10
PIECES = 8
TOTAL = PIECE * PIECES

# Reads what lies at the start of the disk into scattered RAM, then into
# scattered memory of the other device.
MOVE = r"""
import errno, mmap, os, sys
device, disk, piece, pieces = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
allocate = os.open(f"/sys/bus/pci/devices/{device}/p2pmem/allocate", os.O_RDWR)
memories = [memoryview(mmap.mmap(-1, 2 * piece * pieces)),
            memoryview(mmap.mmap(allocate, 2 * piece * pieces))]
disk = os.open(disk, os.O_RDWR | os.O_DIRECT)
for place, memory in enumerate(memories, 1):
    # No two of them are neighbours.
    parts = [memory[2 * i * piece:][:piece] for i in reversed(range(pieces))]
    os.preadv(disk, parts, 0)
    if place == 1:
        os.pwritev(disk, parts, piece * pieces)
"""


def machine(mode):
    return Machine(iommu=mode, switch=True, host_files=True, devices=[Ssd(), Ssd(cmb_mb=16)],
                   trace=["pci_nvme_map_*"])


def run(t):
    ssd, neighbour = t.machine.devices
    data = random.Random("sgl").randbytes(TOTAL)
    with t.case("disk"):
        # A depth of two is one tag.
        t.vm.load("nvme", "sgl_threshold=4096 io_queue_depth=2")
        disk = t.disk(ssd)
        t.vm.sh("python3 -c 'import random, sys; "
                f"sys.stdout.buffer.write(random.Random(\"sgl\").randbytes({TOTAL}))' "
                f"> /tmp/data; dd if=/tmp/data of={disk} bs={TOTAL} oflag=direct conv=fsync "
                "status=none")
        assert ssd.images[0].read_bytes()[:TOTAL] == data
    with t.case("RAM, then memory of the neighbour"):
        begin = len(t.vm.trace.read_text(errors="replace"))
        t.vm.sh(f"cat > /tmp/move.py <<'EOF'\n{MOVE}\nEOF")
        t.vm.sh(f"taskset 1 python3 /tmp/move.py {t.machine.address(neighbour)} {disk} "
                f"{PIECE} {PIECES}", check=False)
        # By way of RAM it has come and gone.
        assert ssd.images[0].read_bytes()[TOTAL:][:TOTAL] == data
    with t.case("what the SSD was told"):
        trace = t.vm.trace.read_text(errors="replace")[begin:]
        # Two for RAM; the SSD may be asked again for what has failed.
        lists = re.split(r"pci_nvme_map_sgl .*\n", trace)[1:]
        assert len(lists) >= 3, f"{len(lists)} scatter gather lists"
        told = [(int(address, 16), int(length)) for address, length in
                re.findall(r"pci_nvme_map_addr addr 0x([0-9a-f]+) len (\d+)", lists[2])]
        assert [length for _, length in told[:PIECES]] == [PIECE] * PIECES, told
        first = told[0][0]
        assert [first - address for address, _ in told[:PIECES]] == \
            [2 * PIECE * i for i in range(PIECES)], told
    t.vm.expected.append("DMAR: ")
    with t.case("unload"):
        t.unload_driver()
