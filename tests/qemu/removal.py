# SPDX-License-Identifier: GPL-2.0
"""Memory goes while another device has an address of it: the driver of its
device is unbound, or the device itself goes, by surprise or in good order.

In every round an SSD has been told to read into that memory, and QEMU withholds
the data: its disk may move one byte a second. Only when the driver waits for
nothing else any more, they come. QEMU looked up where they are to go when the
command began, so that they arrive there whatever the kernel does meanwhile:
giving the memory up too early would be seen by the host, which writes a canary
into it as soon as it has gone.

Or the SSD itself goes, and the memory is nobody's in no time.

The transfers are in turn what a driver, a program and a file system can ask for:
a list of rnvme's own, a command of io_uring on a registered buffer, and a bio.
The last is what the C nvme can do too.
"""

import itertools
import os
import re
import time

from harness.operator import agrees, physdmactl, rows
from harness.scenario import Skip
from harness.topology import Ivshmem, Machine, Ssd
from harness.vm import VmError

INTEL = "Skylake-Client-v1"  # whose host bridge is not on the kernel's list
MACHINES = {
    "strict": dict(iommu="strict"),
    "switch": dict(iommu="off", switch=True, cpu=INTEL),
    "nvme": dict(iommu="strict"),
}
MODES = list(MACHINES)

# How often, in each mode; and for how many seconds the last canary is looked at.
REVOCATIONS = int(os.environ.get("REVOCATIONS", "5"))
UNBINDS = int(os.environ.get("UNBINDS", "3"))
REMOVALS = int(os.environ.get("REMOVALS", "2"))
# Not unless asked for: it was once seen to hang after the memory was back.
UNPLUGS = int(os.environ.get("UNPLUGS", "0"))
CANARY = float(os.environ.get("CANARY", "2"))
LIMIT = 150 + 2 * REVOCATIONS + 5 * UNBINDS + 20 * REMOVALS + 20 * UNPLUGS + 6 * CANARY

MB = 1 << 20
SIZE = 4096
DEBUGFS = "/sys/kernel/debug"
DEVICES = "/sys/bus/pci/devices"
ROUTES, PROVIDERS = f"{DEBUGFS}/physdma/routes", f"{DEBUGFS}/physdma/providers"
LISTS, BIOS = f"{DEBUGFS}/rnvme/io", f"{DEBUGFS}/physdma_bios/io"
# Nothing is left that a device answers: `setpci COMMAND=0`.
TURN_OFF = "printf '\\0\\0' | dd of={device}/config bs=1 seek=4 conv=notrunc 2>/dev/null"

# What is asked often, without a process for each question: a machine full of checks is slow.
SHELL = f"""
in_flight() {{  # PROVIDER BAR CLIENT: the client has the memory mapped
    while read provider bar client hops mapped count rest; do
        [ "$provider $bar $client $count" = "$* 1" ] && return
    done < {ROUTES}
    return 1
}}
bio_in_flight() {{  # PROVIDER BAR: there is a bio to the memory
    while read provider bar first last pages state in_flight cpu bios rest; do
        [ "$provider $bar $bios" = "$* 1" ] && return
    done < {PROVIDERS}
    return 1
}}
is() {{  # STATE PROVIDER BAR
    wanted=$1; shift
    while read provider bar first last pages state rest; do
        [ "$provider $bar $state" = "$* $wanted" ] && return
    done < {PROVIDERS}
    return 1
}}
patiently() {{  # COMMAND...: waits until it succeeds
    tries=0
    until "$@"; do
        tries=$((tries + 1))
        [ $tries -gt 500 ] && return 1
        sleep 0.02
    done
}}
"""


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
        self.phys = self.wait_open() + self.offset  # where the data go

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

    def wait_open(self, command=":"):
        """Waits until other devices may use it, after `command`; returns where it is."""
        line = self.t.vm.sh(
            f"{SHELL}{command}; patiently is open {self.address} {self.bar} && "
            f"exec sed -n {self.bar + 1}p {DEVICES}/{self.address}/resource; cat {PROVIDERS}; "
            "exit 1", limit=30)
        return int(line.split()[0], 0)


class Client:
    """The SSD that reads into the memory of others."""

    def __init__(self, t, ssd, driver):
        self.t = t
        self.ssd = ssd
        self.driver = driver
        self.address = t.machine.address(ssd)
        self.data = os.urandom(SIZE)
        self.ways = itertools.cycle([self.list, self.ring, self.bio] if driver == "rnvme"
                                    else [self.bio])
        self.find()
        with open(ssd.images[0], "r+b") as file:
            file.seek(MB)
            file.write(self.data)

    def find(self):
        """Waits until its disk is there."""
        self.disk = self.t.disk(self.ssd)

    def throttle(self, bps):
        """Lets the disk move so many bytes a second; 0 is as many as it can."""
        limits = {key: 0 for key in ("bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr")}
        self.t.vm.qmp("block_set_io_throttle", device="nvme0n1", bps=bps, **limits)

    def list(self, memory, op, block):
        number = re.search(r"rnvme(\d+)n", self.disk).group(1)
        return f"echo {number} 1 {op} {block} mem:{memory.phys:#x}:{SIZE} 2> /tmp/error > {LISTS}"

    def ring(self, memory, op, block):
        bus, devfn = re.fullmatch(r"0000:(..):(..\..)", memory.address).groups()
        slot, function = devfn.split(".")
        buf = f"kind=1,bus={int(bus, 16)},devfn={int(slot, 16) * 8 + int(function)}," \
            f"bar={memory.bar},offset={memory.offset},length={SIZE}"
        io = f"id=1,nsid=1,op={dict(read=1, write=2)[op]},lba={block},length={SIZE}"
        # Until it has begun, the buffer alone would be in flight, and go at once.
        return f"rnvme_try rw {self.disk.removesuffix('n1')} buf,{buf} start,{io} wait > /tmp/error; " \
            "grep -q 'wait 0' /tmp/error"

    def bio(self, memory, op, block):
        return f"echo {op} {self.disk} {block} {memory.phys:#x}:{SIZE} | " \
            f"dd of={BIOS} bs=4k status=none 2> /tmp/error"

    def in_flight(self, memory):
        """The words that ask whether it has a transfer to the memory."""
        if self.driver == "nvme":
            # It keeps no mapping of its own: the bio does.
            return f"bio_in_flight {memory.address} {memory.bar}"
        return f"in_flight {memory.address} {memory.bar} {self.address}"

    def begin(self, memory, op="read", way=None):
        """Starts a transfer that does not end."""
        way = way or next(self.ways)
        block = {"read": MB, "write": 2 * MB}[op] // 512
        has_begun = "grep -qs start /tmp/error" if way == self.ring else ":"
        self.throttle(1)
        # The first one still passes, and the second waits for an hour.
        self.t.vm.sh(
            f"{SHELL}rm -f /tmp/ended /tmp/gone /tmp/error; "
            f"dd if={self.disk} of=/dev/null bs={SIZE} count=1 iflag=direct 2> /tmp/error && "
            f"{{ ({way(memory, op, block)}; echo $? > /tmp/ended) & }}; patiently {has_begun} && "
            f"patiently {self.in_flight(memory)} || "
            f"{{ cat /tmp/error {ROUTES}; exit 1; }}", limit=30)

    def still(self, memory, command):
        """Has `command` take the memory away, and fails unless it waits for the transfer."""
        self.t.vm.sh(
            f"{SHELL}{{ ({command}; echo $? > /tmp/gone) & }}; "
            f"going() {{ [ -e /tmp/gone ] || is revoked {memory.address} {memory.bar}; }}; "
            f"patiently going || {{ cat {PROVIDERS}; exit 1; }}; sleep 0.1; "
            "if [ -e /tmp/gone ]; then echo it did not wait; exit 1; fi; "
            f"{self.in_flight(memory)} || {{ cat {PROVIDERS} {ROUTES}; exit 1; }}; "
            "[ ! -e /tmp/ended ]", limit=30)

    def end(self, memory):
        """Lets the transfer end, and waits for what waited for it. Then there is nothing to be read
        into any more. How the transfer ended."""
        self.throttle(0)
        said = self.t.vm.sh(
            f"{SHELL}over() {{ [ -s /tmp/gone ] && [ -s /tmp/ended ]; }}; patiently over; "
            "read ended < /tmp/ended; read gone < /tmp/gone; echo $ended $gone; "
            "cp /tmp/error /tmp/error-of-transfer; "
            f"{self.bio(memory, 'read', 0)}; cat /tmp/error" +
            (f"; {self.list(memory, 'read', 0)}; cat /tmp/error" if self.driver == "rnvme" else ""),
            limit=60, check=False)
        ended, gone, why = said.split(maxsplit=2)
        assert gone == "0", f"exit code {gone}"
        # The block layer's answer, and rnvme's own.
        assert "Invalid argument" in why, why
        assert self.driver == "nvme" or "Bad address" in why, why
        return int(ended)


def gone(client, memory, command, back, seconds, pull=None, meanwhile=None, plug=None, way=None):
    """The memory goes by `command` in the midst of a transfer, and comes back by `back`; what is to
    be done outside of the machine before either, and while it goes, `pull`, `plug` and `meanwhile`
    do. How the transfer ended."""
    client.begin(memory, way=way)
    if pull:
        pull()
    client.still(memory, command)
    if meanwhile:
        meanwhile()
    ended = client.end(memory)
    if memory.file and ended == 0:
        content = memory.content()[memory.offset:][:SIZE]
        assert content == client.data, "the data did not arrive before the memory went"
    memory.unchanged(seconds)
    if plug:
        plug()
    assert memory.wait_open(back) + memory.offset == memory.phys
    return ended


def run(t):
    a, c, ivshmem = t.machine.devices
    t.driver = driver = "nvme" if t.mode == "nvme" else "rnvme"
    with t.case("load"):
        t.vm.load("physdma")
        t.vm.load("physdma_ivshmem")
        t.vm.load("physdma_bios")
        # What is withheld is not lost: nothing is aborted.
        t.vm.load("nvme_core" if driver == "nvme" else driver, "io_timeout=3600")
        t.load_driver()
        client = Client(t, a, driver)
        third = Memory(t, ivshmem, 2, "physdma_ivshmem", ivshmem.memory)
        own = []  # The other SSD's memory, which the C driver has pages for.
        if driver == "rnvme":
            own = [Memory(t, c, 2, driver), Memory(t, c, 4, driver, t.vm.files / "nvme1.pmr")]

    def unbound(memory, seconds=0.1, **how):
        ended = gone(client, memory, f"echo {memory.address} > {memory.driver}/unbind",
                     f"echo {memory.address} > {memory.driver}/bind", seconds, **how)
        # Its device is in order: the data arrive.
        assert ended == 0, t.vm.sh("cat /tmp/error-of-transfer")

    with t.case(f"unbind of ivshmem, {REVOCATIONS} times"):
        for _ in range(REVOCATIONS):
            unbound(third)
    if own:
        with t.case(f"unbind of an SSD with memory, {UNBINDS} times"):
            for number in range(UNBINDS):
                unbound(own[number % 2])

    if t.mode == "strict":
        with t.case("a revocation that takes long names whom it waits for"):
            said = f"{third.address}: memory .* is revoked, but waits for {client.address}"
            for way in client.list, client.bio:
                at = len(t.vm.log())
                unbound(third, way=way,
                        meanwhile=lambda: t.vm.wait_for(said, after=at, limit=30))

        with t.case("an operator sees that it goes"):
            def seen():
                pair = (third.address, third.bar, client.address)
                assert rows(t)[pair][2] == "refused: the provider is gone", rows(t)
                agrees(t)
                _, listed = physdmactl(t, "providers")
                state, = (row["state"] for row in listed if row["provider"] == third.address)
                assert state == "revoked", listed

            unbound(third, meanwhile=seen)

    def surprised(memory, seconds=0.1):
        """It answers no more, and then the kernel is told."""
        device = f"{DEVICES}/{memory.address}"
        gone(client, memory,
             f"{TURN_OFF.format(device=device)}; sleep 0.1; echo 1 > {device}/remove",
             f"[ -e {device} ] || echo 1 > /sys/bus/pci/rescan", seconds)

    with t.case(f"surprise removal of ivshmem, {REMOVALS} times"):
        for _ in range(REMOVALS):
            surprised(third)
    if own:
        with t.case(f"surprise removal of an SSD with memory, {REMOVALS} times"):
            for number in range(REMOVALS):
                surprised(own[number % 2])

    with t.case(f"surprise removal of the SSD that does it, {REMOVALS} times"):
        device = f"{DEVICES}/{client.address}"
        for number in range(REMOVALS):
            memory = [third, *own[:1]][number % 2 if own else 0]
            if driver == "nvme":
                # It sees that nobody answers when a command is late, and not before.
                t.vm.sh(f"echo 2000 > /sys/block/{client.disk[5:]}/queue/io_timeout")
            # It reads the memory: QEMU has looked up where, and does not forget it.
            client.begin(memory, "write")
            # rnvme waits for no time-out: that would be an hour.
            t.vm.sh(f"{SHELL}{TURN_OFF.format(device=device)}; echo 1 > {device}/remove; "
                    "ended() { [ -s /tmp/ended ]; }; patiently ended && read ended < /tmp/ended && "
                    f"[ $ended != 0 ] && ! {client.in_flight(memory)}", limit=30)
            client.throttle(0)
            t.vm.sh("echo 1 > /sys/bus/pci/rescan")
            client.find()

    backends = []

    def plug():
        """Puts it back, when QEMU has let it go: the same file, as another object of QEMU's, which
        does not take one twice."""
        backends.append(f"ivshmem2-mem{len(backends)}")
        t.vm.qmp("object-add", **{
            "qom-type": "memory-backend-file", "id": backends[-1], "share": True,
            "mem-path": str(ivshmem.memory), "size": ivshmem.size_mb * MB})
        for _ in range(100):
            try:
                t.vm.qmp("device_add", driver="ivshmem-plain", id="ivshmem2", bus="port2",
                         memdev=backends[-1])
                return
            except VmError as error:
                assert "Duplicate" in str(error), error
                time.sleep(0.1)
        raise AssertionError("QEMU keeps it")

    with t.case(f"ivshmem unplugged in good order, {UNPLUGS} times"):
        if not UNPLUGS:
            raise Skip("UNPLUGS= says how often")
        if t.vm.kernel.name != "kernel":
            raise Skip("lockdep finds a cycle of locks in pciehp itself, and is of no use after that")
        for _ in range(UNPLUGS):
            # The slot's lamp blinks for five seconds first.
            gone(client, third, f"while [ -e {DEVICES}/{third.address} ]; do sleep 0.1; done", ":",
                 0.1, lambda: t.vm.qmp("device_del", id="ivshmem2"), plug=plug)

    with t.case(f"{CANARY:g} s after the memory went"):
        for how in unbound, surprised:
            for memory in third, *own[1:]:
                how(memory, CANARY)
    with t.case("unload"):
        # Nothing is left of all that.
        t.vm.sh(f"[ $(grep -c : {PROVIDERS}) = {1 + (len(own) or 1)} ] || {{ cat {PROVIDERS}; exit 1; }}")
        t.unload_driver()
        t.vm.unload("physdma_bios", "physdma_ivshmem", "physdma")
        faults = re.findall("vtd_dmar_fault.*", t.vm.trace.read_text(errors="replace"))
        assert not faults, faults
