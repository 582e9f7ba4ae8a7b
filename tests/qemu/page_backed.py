# SPDX-License-Identifier: GPL-2.0
"""Peer-to-peer memory that has pages: from SSD A to SSD B, both with rnvme, by
way of the controller memory buffer of a third SSD, which C nvme offers.

A program has the buffer mapped and passes it to O_DIRECT. The modes are the
machines: the buffer has a bus address to the SSDs (one switch), is reached
through the host bridge (root ports, strict IOMMU), or not at all (a host bridge
that is not on the kernel's list).
"""

import random
import re

from harness.topology import Machine, Ssd

MACHINES = {
    "switch": dict(switch=True, iommu="off"),
    "ports": dict(iommu="strict"),
    "refused": dict(iommu="off", cpu="Skylake-Client-v1"),
}
MODES = list(MACHINES)
CMB_MB = 16

# Lengths of the requests in bytes; together, what is copied.
LENGTHS = [512, 4096, 4096 + 512, 65536, 131072, 1 << 20, 512 << 10]
TOTAL = sum(LENGTHS)

# Copies from one disk to the other, through the memory of the device named
# first; prints what became of each read and write.
COPY = r"""
import errno, mmap, os, sys
device, source, target = sys.argv[1:4]
lengths = [int(length) for length in sys.argv[4:]]
allocate = os.open(f"/sys/bus/pci/devices/{device}/p2pmem/allocate", os.O_RDWR)
memory = memoryview(mmap.mmap(allocate, -(-max(lengths) // 4096) * 4096))
source = os.open(source, os.O_RDONLY | os.O_DIRECT)
target = os.open(target, os.O_WRONLY | os.O_DIRECT)
place = 0
for length in lengths:
    for move, disk in (os.preadv, source), (os.pwritev, target):
        try:
            print(move(disk, [memory[:length]], place))
        except OSError as error:
            print(errno.errorcode[error.errno])
    place += length
"""

# Copies on and on until that fails; prints why. The first line is the first copy.
LOOP = COPY.split("place = 0")[0] + r"""
print("copying", flush=True)
while True:
    for move, disk in (os.preadv, source), (os.pwritev, target):
        try:
            move(disk, [memory], 0)
        except OSError as error:
            sys.exit(f"{move.__name__}: {errno.errorcode[error.errno]}")
    print("copied", flush=True)
"""

# Has rnvme given the memory of the device named first in ways that do not hold its pages: by its
# place in a BAR, and pinned for long.
PREMAP = r"""
import ctypes, errno, fcntl, mmap, os, struct, sys
device, file = sys.argv[1:]
bus, slot, function = (int(part, 16) for part in device.replace(".", ":").split(":")[1:])
memory = mmap.mmap(os.open(f"/sys/bus/pci/devices/{device}/p2pmem/allocate", os.O_RDWR), 4096)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
file = os.open(file, os.O_RDWR)
for kind, bus, devfn, bar, offset in (1, bus, slot << 3 | function, 2, 0), (2, 0, 0, 0, address):
    # struct rnvme_buf, and RNVME_IOC_BUF_REGISTER
    buf = struct.pack("3I4B2Q2I2Q", kind, 0, 0, bus, devfn, bar, 0, offset, 4096, 0, 0, 0, 0)
    try:
        print(fcntl.ioctl(file, 3 << 30 | len(buf) << 16 | ord("N") << 8 | 0xa0, buf))
    except OSError as error:
        print(errno.errorcode[error.errno])
"""


def machine(mode):
    return Machine(host_files=True, trace=["pci_nvme_map_addr*"],
                   devices=[Ssd(), Ssd(), Ssd(cmb_mb=CMB_MB)], **MACHINES[mode])


def counters(t, device):
    """What the driver counted for this device, which has been unbound."""
    address = re.escape(t.machine.address(device))
    said, = re.findall(rf"rnvme {address}: .*counters: (.*)", t.vm.log())
    return {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", said)}


def in_use(t, third, names):
    """The driver of the memory is unbound while a program has it mapped and
    copies. The program gets an error, and afterwards all works as before."""
    address = t.machine.address(third)
    again = f"python3 /tmp/copy.py {address} {names[0]} {names[1]} 65536 512"
    t.vm.sh(f"cat > /tmp/loop.py <<'EOF'\n{LOOP}\nEOF")
    t.vm.sh(f"python3 /tmp/loop.py {address} {names[0]} {names[1]} 65536 > /tmp/loop 2>&1 & "
            "for try in $(seq 100); do [ $(grep -c copied /tmp/loop) -gt 2 ] && exit; sleep 0.1; "
            "done; cat /tmp/loop; exit 1")
    t.vm.sh(f"timeout 20 sh -c 'echo {address} > /sys/bus/pci/drivers/nvme/unbind'")
    t.vm.sh(f"[ ! -e /sys/bus/pci/devices/{address}/p2pmem ]")
    said = t.vm.sh("for try in $(seq 100); do grep -q : /tmp/loop && break; sleep 0.1; done; "
                   "tail -n 1 /tmp/loop").strip()
    # The pages are gone, or the request was on its way when they went, or it came
    # while their device waited for the last one.
    assert said in [f"{move}: {error}" for move in ("preadv", "pwritev")
                    for error in ("EFAULT", "EIO", "ENODEV")], said
    t.vm.sh(f"echo {address} > /sys/bus/pci/drivers/nvme/bind")
    t.disk(third)
    assert t.vm.sh(again).split() == ["65536", "65536", "512", "512"]


def run(t):
    a, b, third = t.machine.devices
    data = random.Random(t.mode).randbytes(TOTAL)
    with t.case("two drivers"):
        for ssd in a, b:
            t.vm.sh(f"echo rnvme > /sys/bus/pci/devices/{t.machine.address(ssd)}/driver_override")
        t.vm.load("nvme")
        t.load_driver()
        names = [t.disk(ssd) for ssd in (a, b, third)]
        assert [name.startswith("/dev/rnvme") for name in names] == [True, True, False], names
        first, last = re.search(r"added peer-to-peer DMA memory 0x([0-9a-f]+)-0x([0-9a-f]+)",
                                t.vm.log()).groups()
        buffer = range(int(first, 16), int(last, 16) + 1)
        assert len(buffer) == CMB_MB << 20, f"{first}-{last}"
        # By way of RAM.
        t.vm.sh("python3 -c 'import random, sys; "
                f"sys.stdout.buffer.write(random.Random(\"{t.mode}\").randbytes({TOTAL}))' "
                f"> /tmp/data; dd if=/tmp/data of={names[0]} bs=64k oflag=direct conv=fsync "
                "status=none")
        assert a.images[0].read_bytes()[:TOTAL] == data
    with t.case("copy"):
        t.vm.sh(f"cat > /tmp/copy.py <<'EOF'\n{COPY}\nEOF")
        begin = len(t.vm.trace.read_text(errors="replace"))
        said = t.vm.sh(f"python3 /tmp/copy.py {t.machine.address(third)} {names[0]} {names[1]} "
                       f"{' '.join(map(str, LENGTHS))}").split()
        if t.mode == "refused":
            assert said == ["EINVAL"] * 2 * len(LENGTHS), said
        else:
            assert said == [str(length) for length in LENGTHS for _ in range(2)], said
    with t.case("data"):
        # As the host sees them.
        assert a.images[0].read_bytes()[:TOTAL] == data
        expected = bytes(TOTAL) if t.mode == "refused" else data
        assert b.images[0].read_bytes()[:TOTAL] == expected
    with t.case("addresses"):
        trace = t.vm.trace.read_text(errors="replace")[begin:]
        pieces = [(int(address, 16), int(length)) for address, length in
                  re.findall(r"pci_nvme_map_addr addr 0x([0-9a-f]+) len (\d+)", trace)]
        inside = sum(length for address, length in pieces if address in buffer)
        # What the SSDs were told: the buffer's own addresses, or those of the IOMMU.
        assert inside == (2 * TOTAL if t.mode == "switch" else 0), f"{inside} of {2 * TOTAL}"
        if t.mode == "ports":
            assert sum(length for _, length in pieces) >= 2 * TOTAL, pieces
    with t.case("reason"):
        reasons = re.findall(r"rnvme (\S+): no DMA to memory of (\S+): (.*\S)", t.vm.log())
        reason = "host bridge 8086:29c0 is not on the kernel's list: put both devices below one " \
            "PCIe switch"
        provider = t.machine.address(third)
        assert sorted(reasons) == ([(t.machine.address(ssd), provider, reason) for ssd in (a, b)]
                                   if t.mode == "refused" else []), reasons
    if t.mode != "refused":
        with t.case("not without its pages"):
            said = t.vm.sh(f"cat > /tmp/premap.py <<'EOF'\n{PREMAP}\nEOF\npython3 /tmp/premap.py "
                           f"{provider} {names[0].removesuffix('n1')}").split()
            assert said == ["ENXIO", "EFAULT"], said
            number = re.search(r"rnvme(\d+)n", names[0])[1]
            said = t.vm.sh(f"echo {number} 1 read 0 mem:{buffer.start:#x}:4096 | "
                           "dd of=/sys/kernel/debug/rnvme/io status=none 2>&1", check=False)
            assert "Bad address" in said, said
        with t.case("unbind in use"):
            in_use(t, third, names)
    with t.case("unbind"):
        # The memory goes first.
        t.vm.unload("nvme", "nvme_core")
        t.unload_driver()
        for ssd in a, b:
            count = counters(t, ssd)
            assert count["internal"] == count["mixed"] == 0, count
            if t.mode == "switch":
                assert count["bus"] >= len(LENGTHS), count
            else:
                assert count["bus"] == 0, count
