# SPDX-License-Identifier: GPL-2.0
"""One request of 32 pages that lie apart in memory is one range for the device.

QEMU tells where the device's addresses are, and what the kernel invalidates in
the IOMMU.
"""

import re

from harness.topology import Machine, Ssd

MODES = ["strict"]
PAGES = 32

# Reads PAGES pages from the disk's start with one request, into pages of which
# no two in a row are neighbours in memory; prints "scattered" if that is so.
READ = r"""
import mmap, os, struct, sys
pages, page = int(sys.argv[2]), mmap.PAGESIZE
memory = mmap.mmap(-1, 64 * pages * page)
memory.write(b"\xff" * len(memory))
import ctypes
base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
with open("/proc/self/pagemap", "rb") as file:
    file.seek(base // page * 8)
    frames = [entry[0] & (1 << 55) - 1
              for entry in struct.iter_unpack("<Q", file.read(64 * pages * 8))]
chosen = []
for number, frame in enumerate(frames):
    if not chosen or abs(frame - frames[chosen[-1]]) > 1:
        chosen.append(number)
    if len(chosen) == pages:
        break
assert len(chosen) == pages and all(frames[number] for number in chosen)
view = memoryview(memory)
buffers = [view[n * page:(n + 1) * page] for n in chosen]
disk = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
print("reading")
assert os.preadv(disk, buffers, 0) == pages * page
near = [n for n in range(1, pages) if abs(frames[chosen[n]] - frames[chosen[n - 1]]) == 1]
print("scattered" if not near else "not scattered")
for n, buffer in enumerate(buffers):
    assert bytes(buffer) == bytes([n + 1]) * page, f"page {n} has other data"
"""


def machine(mode):
    return Machine(iommu=mode, host_files=True, devices=[Ssd()],
                   trace=["pci_nvme_map_addr", "pci_nvme_read", "vtd_inv_desc_iotlb*"])


def run(t):
    ssd, = t.machine.devices
    with t.case("load"):
        t.load_driver()
        disk = t.disk(ssd)
        # Each page of the request is filled with its number.
        t.vm.sh(f"python3 -c 'import sys; sys.stdout.buffer.write(b\"\".join("
                f"bytes([n + 1]) * 4096 for n in range({PAGES})))' > /tmp/pages && "
                f"dd if=/tmp/pages of={disk} bs=128k oflag=direct status=none")
    with t.case("one request"):
        t.vm.sh(f"cat > /tmp/read.py <<'EOF'\n{READ}\nEOF")
        # Programs and libraries come from other places than the disk.
        t.vm.sh("python3 /tmp/read.py /dev/zero 1 > /dev/null 2>&1 || true")
        begin = len(t.vm.trace.read_text(errors="replace"))
        said = t.vm.sh(f"python3 /tmp/read.py {disk} {PAGES}")
        assert said.split() == ["reading", "scattered"], said
        trace = t.vm.trace.read_text(errors="replace")[begin:]
        reads = re.findall(r"pci_nvme_read .*", trace)
        assert len(reads) == 1, f"{len(reads)} commands: {reads}"
    with t.case("one segment"):
        pieces = [(int(addr, 16), int(length)) for addr, length in
                  re.findall(r"pci_nvme_map_addr addr 0x([0-9a-f]+) len (\d+)", trace)]
        assert sum(length for _, length in pieces) == PAGES * 4096, pieces
        for (addr, length), (after, _) in zip(pieces, pieces[1:]):
            assert addr + length == after, f"{addr:#x} + {length:#x} is not {after:#x}"
    with t.case("one invalidation"):
        invalidations = re.findall(r"vtd_inv_desc_iotlb.*", trace)
        assert len(invalidations) == 1, invalidations
    with t.case("unload"):
        t.unload_driver()
