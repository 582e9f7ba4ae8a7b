# SPDX-License-Identifier: GPL-2.0
"""The kernel's C nvme, and the memory of a PCI device that has pages, scattered,
told to the SSD by a scatter gather list.

The tag of the request has had one before whose memory an IOMMU made one range.
What is left of that must not be read as the next request's. The memory is the
SSD's own buffer: its address on the bus is what QEMU knows it by, though an
IOMMU stands before all other memory.
"""

import random

from harness.topology import Machine, Ssd

MODES = ["strict"]
DRIVERS = ["nvme"]
PIECE = 8 << 10
PIECES = 8
TOTAL = PIECE * PIECES

# Reads what lies at the start of the disk into scattered RAM, then into
# scattered memory of the device, and writes both behind it.
MOVE = r"""
import errno, mmap, os, sys
device, disk, piece, pieces = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
allocate = os.open(f"/sys/bus/pci/devices/{device}/p2pmem/allocate", os.O_RDWR)
memories = [memoryview(mmap.mmap(-1, 2 * piece * pieces)),
            memoryview(mmap.mmap(allocate, 2 * piece * pieces))]
disk = os.open(disk, os.O_RDWR | os.O_DIRECT)
total = piece * pieces
for place, memory in enumerate(memories, 1):
    # No two of them are neighbours.
    parts = [memory[2 * i * piece:][:piece] for i in reversed(range(pieces))]
    for move, at in (os.preadv, 0), (os.pwritev, place * total):
        try:
            print(move(disk, parts, at))
        except OSError as error:
            print(errno.errorcode[error.errno])
"""


def machine(mode):
    return Machine(iommu=mode, host_files=True, devices=[Ssd(cmb_mb=16)], trace=["pci_nvme_map*"])


def run(t):
    ssd, = t.machine.devices
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
    with t.case("RAM, then memory of the device"):
        begin = len(t.vm.trace.read_text(errors="replace"))
        t.vm.sh(f"cat > /tmp/move.py <<'EOF'\n{MOVE}\nEOF")
        said = t.vm.sh(f"taskset 1 python3 /tmp/move.py {t.machine.address(ssd)} {disk} "
                       f"{PIECE} {PIECES}").split()
        assert said == [str(TOTAL)] * 4, said
    with t.case("data"):
        image = ssd.images[0].read_bytes()
        for place, memory in enumerate(("RAM", "memory of the device"), 1):
            assert image[place * TOTAL:][:TOTAL] == data, memory
    with t.case("lists"):
        trace = t.vm.trace.read_text(errors="replace")[begin:]
        # The SSD was told each piece of its own buffer.
        own = trace.count("pci_nvme_map_addr_cmb ")
        assert own == 2 * PIECES, f"{own} pieces of the buffer"
        assert trace.count("pci_nvme_map_sgl ") >= 4, "no scatter gather lists"
    with t.case("unload"):
        t.unload_driver()
