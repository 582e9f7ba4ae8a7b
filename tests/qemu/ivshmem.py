# SPDX-License-Identifier: GPL-2.0
"""A provider's memory for programs: what they see of it, and that they see
nothing of it any more when its driver has gone, however they came by it.
"""

import os

from harness.topology import Ivshmem, Machine

MODES = ["off"]
MB = 1 << 20


def machine(mode):
    return Machine(iommu=mode, host_files=True, devices=[Ivshmem(size_mb=4), Ivshmem(size_mb=8)])


# Maps the memory, has it in all ways that a program can get it, and tells what
# happens when it is touched.
PROGRAM = r"""
import ctypes, mmap, os, signal, sys

def at(address):
    with open(f"/sys/bus/pci/devices/{address}/resource") as file:
        first, last, _ = (int(word, 0) for word in file.readlines()[2].split())
    return first, last + 1 - first

def refused(error, function, *arguments, **words):
    try:
        function(*arguments, **words)
    except OSError as e:
        assert e.errno == error, e
    else:
        sys.exit(f"{arguments} {words} was not refused")

def fate(touch):
    # How a program ends that does that.
    child = os.fork()
    if child == 0:
        touch()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.mremap.argtypes = [ctypes.c_void_p] + [ctypes.c_size_t] * 2 + [ctypes.c_int, ctypes.c_void_p]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
fd = os.open("/dev/physdma_ivshmem", os.O_RDWR)
"""

MAPPING = PROGRAM + r"""
for address, sign in zip(sys.argv[1:3], (b"one", b"two")):
    first, size = at(address)
    memory = mmap.mmap(fd, size, offset=first)
    assert memory[0x2000:0x2005] == b"host" + sign[:1], memory[0x2000:0x2005]
    memory[size - 4096:size - 4093] = sign
    # A part of it is the same memory.
    last = mmap.mmap(fd, 4096, offset=first + size - 4096)
    assert last[:3] == sign
    del memory, last

refused(22, mmap.mmap, fd, size + 4096, offset=first)
refused(22, mmap.mmap, fd, 8192, offset=first + size - 4096)
refused(22, mmap.mmap, fd, 4096, flags=mmap.MAP_PRIVATE, offset=first)
refused(6, mmap.mmap, fd, 4096, offset=0)
refused(6, mmap.mmap, fd, 4096, offset=0x100000)
# The address of BAR 0 of the same device, which nobody has registered.
with open(f"/sys/bus/pci/devices/{address}/resource") as file:
    refused(6, mmap.mmap, fd, 4096, offset=int(file.readline().split()[0], 0) & ~4095)
"""

HOLDING = PROGRAM + r"""
first, size = at(sys.argv[1])
memory = mmap.mmap(fd, size, offset=first)
untouched = mmap.mmap(fd, size, offset=first)
assert memory[:4] == untouched[:4] == b"\0\0\0\0"

# Moved to another place, and with a hole in it.
NONE, READ_WRITE, MAYMOVE, FIXED, FAILED = 0, 3, 1, 2, 2 ** 64 - 1
where = libc.mmap(None, size, READ_WRITE, mmap.MAP_SHARED, fd, first)
ctypes.memset(where, 0, size)
place = libc.mmap(None, size, NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
moved = libc.mremap(where, size, size, MAYMOVE | FIXED, place)
assert moved == place, ctypes.get_errno()
assert libc.mremap(moved, size, 2 * size, MAYMOVE, None) == FAILED, "it could grow"
assert libc.munmap(moved + size // 2, 4096) == 0

ways = {
    "mapped": lambda: memory[0],
    "never touched": lambda: untouched[8192],
    "moved": lambda: ctypes.string_at(moved, 1),
    "behind a hole": lambda: ctypes.string_at(moved + size // 2 + 4096, 1),
}
assert {way: fate(touch) for way, touch in ways.items()} == dict.fromkeys(ways, 0)

# A child, which has pages of its own by now.
asks, tells = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    for touch in ways.values():
        touch()
    os.write(tells[1], b"x")
    os.read(asks[0], 1)
    memory[0]
    os._exit(0)
os.read(tells[0], 1)

driver = "/sys/bus/pci/drivers/physdma_ivshmem/"
def write(file, text):
    with open(file, "w") as f:
        f.write(text)
write(driver + "unbind", sys.argv[1])
gone = {way: fate(touch) for way, touch in ways.items()}
assert gone == dict.fromkeys(ways, -signal.SIGBUS), gone
os.write(asks[1], b"x")
_, status = os.waitpid(child, 0)
assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGBUS, status
refused(6, mmap.mmap, fd, size, offset=first)

# What was mapped stays gone when the driver is back; the open file goes on.
write(driver + "bind", sys.argv[1])
again = {way: fate(touch) for way, touch in ways.items()}
assert again == gone, again
assert mmap.mmap(fd, size, offset=first)[:4] == b"\0\0\0\0"

# The driver's code stays as long as there is a file, or what was mapped by one.
os.close(fd)
assert os.system("rmmod physdma_ivshmem 2>/dev/null") != 0
"""

RACING = PROGRAM + r"""
import time
first, size = at(sys.argv[1])
driver = "/sys/bus/pci/drivers/physdma_ivshmem/"
children = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        # Maps and touches as fast as it can; whatever goes wrong is an errno or a SIGBUS.
        end = time.monotonic() + 6
        while time.monotonic() < end:
            grandchild = os.fork()
            if grandchild == 0:
                try:
                    while time.monotonic() < end:
                        memory = mmap.mmap(fd, size, offset=first)
                        for page in range(0, size, 65536):
                            memory[page]
                        memory.close()
                except OSError:
                    pass
                os._exit(0)
            _, status = os.waitpid(grandchild, 0)
            if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGBUS:
                os._exit(1)
        os._exit(0)
    children.append(child)
end = time.monotonic() + 6
rounds = 0
while time.monotonic() < end:
    for what in "unbind", "bind":
        with open(driver + what, "w") as file:
            file.write(sys.argv[1])
    rounds += 1
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
print(rounds, "rounds")
assert rounds >= 5
"""


def program(t, name, text, *addresses):
    # Of another name each time: the machine does not look again at what it has read.
    file = t.vm.files / f"{name}.py"
    file.write_text(text)
    return t.vm.sh(f"python3 -B /run/host{file} {' '.join(addresses)}", limit=60)


def run(t):
    addresses = [t.machine.address(device) for device in t.machine.devices]
    with t.case("mapped"):
        t.vm.load("physdma_ivshmem")
        for device, sign in zip(t.machine.devices, (b"one", b"two")):
            with open(device.memory, "r+b") as file:
                file.seek(0x2000)
                file.write(b"host" + sign[:1])
        program(t, "mapping", MAPPING, *addresses)
        for device, sign in zip(t.machine.devices, (b"one", b"two")):
            with open(device.memory, "rb") as file:
                file.seek(device.size_mb * MB - 4096)
                assert file.read(3) == sign
    with t.case("taken away"):
        program(t, "holding", HOLDING, *addresses)
    with t.case("taken away while it is being mapped"):
        program(t, "racing", RACING, *addresses)
    with t.case("unload"):
        t.vm.unload("physdma_ivshmem")
