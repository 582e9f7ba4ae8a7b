# SPDX-License-Identifier: GPL-2.0
"""Memory goes while another device has an address of it: the driver of its
device is unbound, or the device itself goes, by surprise or in good order.

In every round an SSD has been told to read into that memory, and QEMU withholds
the data: its disk may move one byte a second. Only when the driver waits for
nothing else any more, they come. QEMU looked up where they are to go when the
command began, so that they arrive there whatever the kernel does meanwhile:
giving the memory up too early would be seen by the host, which writes a canary
into it as soon as it has gone.
"""

import os
import re
import time
from contextlib import contextmanager

from harness.topology import Ivshmem, Machine, Ssd
from harness.vm import CommandError

INTEL = "Skylake-Client-v1"  # whose host bridge is not on the kernel's list
MACHINES = {
    "strict": dict(iommu="strict"),
    "switch": dict(iommu="off", switch=True, cpu=INTEL),
}
MODES = list(MACHINES)

# How often, in each mode; and for how many seconds the last canary is looked at.
REVOCATIONS = int(os.environ.get("REVOCATIONS", "5"))
UNBINDS = int(os.environ.get("UNBINDS", "3"))
REMOVALS = int(os.environ.get("REMOVALS", "3"))
CANARY = float(os.environ.get("CANARY", "2"))
LIMIT = 150 + 2 * REVOCATIONS + 5 * UNBINDS + 20 * REMOVALS + 6 * CANARY

MB = 1 << 20
SIZE = 4096
DEBUGFS = "/sys/kernel/debug"
DEVICES = "/sys/bus/pci/devices"
ROUTES, PROVIDERS = f"{DEBUGFS}/physdma/routes", f"{DEBUGFS}/physdma/providers"
IO = f"{DEBUGFS}/rnvme/io"


def machine(mode):
    return Machine(devices=[Ssd(), Ssd(cmb_mb=4, pmr_mb=4), Ivshmem(size_mb=4)], hotplug=True,
                   trace=["vtd_dmar_fault"], **MACHINES[mode])


class Memory:
    """A BAR that other devices do DMA to, and the driver of its device."""

    def __init__(self, t, device, bar, driver, file=None):
        self.t = t
        self.device = device
        self.address = t.machine.address(device)
        self.bar = bar
        self.driver = f"/sys/bus/pci/drivers/{driver}"
        self.file = file  # as the host has it
        self.offset = MB + 3 * SIZE

    @property
    def phys(self):
        """Where the data go."""
        line = self.t.vm.sh(f"sed -n {self.bar + 1}p {DEVICES}/{self.address}/resource")
        return int(line.split()[0], 0) + self.offset

    def content(self):
        with open(self.file, "rb") as file:
            return file.read()

    def unchanged(self, seconds):
        """Writes into the memory, and fails if somebody else does from now on."""
        if self.file is None:
            time.sleep(seconds)
            return
        with open(self.file, "r+b") as file:
            file.seek(self.offset)
            file.write(os.urandom(SIZE))
        before = self.content()
        time.sleep(seconds)
        assert self.content() == before, "the memory was written to after it had gone"

    def wait_open(self):
        """Waits until other devices may use it."""
        self.t.vm.sh(f"for try in $(seq 200); do grep -q '^{self.address} *{self.bar} .* open' "
                     f"{PROVIDERS} && exit; sleep 0.05; done; cat {PROVIDERS}; exit 1", limit=30)


class Client:
    """The SSD that reads into the memory of others."""

    def __init__(self, t, ssd):
        self.t = t
        self.ssd = ssd
        self.address = t.machine.address(ssd)
        self.data = os.urandom(SIZE)
        disk = t.disk(ssd)
        self.number = re.search(r"rnvme(\d+)n", disk).group(1)
        with open(ssd.images[0], "r+b") as file:
            file.seek(MB)
            file.write(self.data)

    def throttle(self, bps):
        """Lets the disk move so many bytes a second; 0 is as many as it can."""
        limits = {key: 0 for key in ("bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr")}
        self.t.vm.qmp("block_set_io_throttle", device="nvme0n1", bps=bps, **limits)

    def job(self, phys):
        return f"{self.number} 1 read {MB // 512} mem:{phys:#x}:{SIZE}"

    def in_flight(self, memory):
        """A shell function: how many mappings the client has of the memory."""
        return (f"in_flight() {{ awk '$1 == \"{memory.address}\" && $2 == {memory.bar} && "
                f"$3 == \"{self.address}\" {{ print $6 }}' {ROUTES}; }}; ")

    def begin(self, memory):
        """Starts a transfer that does not end."""
        self.throttle(1)
        # The first one still passes, and the second waits for an hour.
        self.t.vm.sh(
            f"rm -f /tmp/ended /tmp/gone; echo '{self.number} 1 read 0 ram:0:{SIZE}' > {IO} && "
            f"{{ (echo '{self.job(memory.phys)}' 2>/tmp/error > {IO}; echo $? > /tmp/ended) & }}; "
            + self.in_flight(memory) +
            "for try in $(seq 200); do [ \"$(in_flight)\" = 1 ] && exit; sleep 0.02; done; "
            f"cat {ROUTES}; exit 1", limit=30)

    def still(self, memory, command):
        """Has `command` take the memory away, and fails unless it waits for the transfer."""
        self.t.vm.sh(
            f"{{ ({command}; echo $? > /tmp/gone) & }}; " + self.in_flight(memory) +
            "for try in $(seq 200); do "
            f"grep -q '^{memory.address} *{memory.bar} .* revoked ' {PROVIDERS} && break; "
            "sleep 0.02; done; sleep 0.1; "
            f"if [ -e /tmp/gone ]; then echo gone too early; exit 1; fi; "
            f"[ \"$(in_flight)\" = 1 ] || {{ cat {PROVIDERS} {ROUTES}; exit 1; }}; "
            "[ ! -e /tmp/ended ]", limit=30)

    def end(self):
        """Lets the transfer end, and waits for what waited for it. How the one and the other
        ended."""
        self.throttle(0)
        said = self.t.vm.sh("for try in $(seq 400); do [ -s /tmp/gone ] && [ -s /tmp/ended ] && "
                            "break; sleep 0.02; done; cat /tmp/ended /tmp/gone", limit=60)
        ended, gone = map(int, said.split())
        assert gone == 0, f"exit code {gone}"
        return ended

    def refused(self, phys):
        """There is nothing to be read into any more."""
        try:
            self.t.vm.sh(f"echo '{self.job(phys)}' > {IO}")
            raise AssertionError("memory that had gone was read into")
        except CommandError as error:
            assert "Bad address" in str(error), error


@contextmanager
def gone(client, memory, command, seconds=0.2):
    """The memory goes by `command` in the midst of a transfer; the body brings it back."""
    phys = memory.phys
    client.begin(memory)
    client.still(memory, command)
    ended = client.end()
    if memory.file and ended == 0:
        content = memory.content()[memory.offset:][:SIZE]
        assert content == client.data, "the data did not arrive before the memory went"
    client.refused(phys)
    memory.unchanged(seconds)
    yield ended
    memory.wait_open()
    assert memory.phys == phys


def run(t):
    a, c, ivshmem = t.machine.devices
    with t.case("load"):
        t.vm.load("physdma")
        t.vm.load("physdma_ivshmem")
        t.load_driver()
        client = Client(t, a)
        third = Memory(t, ivshmem, 2, "physdma_ivshmem", ivshmem.memory)
        buffer = Memory(t, c, 2, "rnvme")
        region = Memory(t, c, 4, "rnvme", t.vm.files / "nvme1.pmr")

    def unbound(memory, seconds=0.2):
        with gone(client, memory, f"echo {memory.address} > {memory.driver}/unbind",
                  seconds) as ended:
            # Its device is in order: the data arrive.
            assert ended == 0, t.vm.sh("cat /tmp/error")
            t.vm.sh(f"echo {memory.address} > {memory.driver}/bind")

    with t.case(f"unbind of ivshmem, {REVOCATIONS} times"):
        for _ in range(REVOCATIONS):
            unbound(third)
    with t.case(f"unbind of an SSD with memory, {UNBINDS} times"):
        for number in range(UNBINDS):
            unbound((buffer, region)[number % 2])

    def surprised(memory, seconds=0.2):
        """It answers no more, and then the kernel is told."""
        device = f"{DEVICES}/{memory.address}"
        with gone(client, memory,
                  f"printf '\\0\\0' | dd of={device}/config bs=1 seek=4 conv=notrunc 2>/dev/null; "
                  f"sleep 0.1; echo 1 > {device}/remove", seconds):
            t.vm.sh(f"[ ! -e {device} ]; echo 1 > /sys/bus/pci/rescan")

    with t.case(f"surprise removal of ivshmem, {REMOVALS} times"):
        for _ in range(REMOVALS):
            surprised(third)
    with t.case(f"surprise removal of an SSD with memory, {REMOVALS} times"):
        for number in range(REMOVALS):
            surprised((buffer, region)[number % 2])

    with t.case(f"{CANARY:g} s after the memory went"):
        for how in unbound, surprised:
            for memory in third, region:
                how(memory, CANARY)
    with t.case("unload"):
        # Nothing is left of all that.
        t.vm.sh(f"[ $(grep -c : {PROVIDERS}) = 3 ] || {{ cat {PROVIDERS}; exit 1; }}")
        t.unload_driver()
        t.vm.unload("physdma_ivshmem", "physdma")
        faults = re.findall("vtd_dmar_fault.*", t.vm.trace.read_text(errors="replace"))
        assert not faults, faults
