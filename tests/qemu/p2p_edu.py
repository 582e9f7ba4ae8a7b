# SPDX-License-Identifier: GPL-2.0
"""One device does DMA to the memory of another, which has no struct page: edu
to and from two ivshmem devices, on every route.

The modes are the machines. The host writes what is to be read, and reads what
was written, in the files that are the memory of the ivshmem devices.
"""

import os
import re
import time

from harness.scenario import Skip
from harness.topology import Edu, Ivshmem, Machine
from harness.vm import CommandError

INTEL = "Skylake-Client-v1"  # whose host bridge is not on the kernel's list
SIZE = 4096
MB = 1 << 20

# The machine; how many address bits edu has; and what becomes of a copy: how
# the device is told of the memory, or why it is refused.
MACHINES = {
    # An IOMMU gives addresses that fit any mask.
    "strict": (dict(iommu="strict"), 28, "Mapped"),
    "off": (dict(iommu="off"), 64, "Mapped"),
    "switch": (dict(iommu="off", switch=True, cpu=INTEL), 64, "Bus"),
    "switch-passthrough": (dict(iommu="passthrough", switch=True, cpu=INTEL), 64, "Bus"),
    # RAM has to fit the mask too, and the debug kernel the RAM.
    "mask": (dict(iommu="off", memory="512M"), 29,
             r"it cannot address 0x\w+: its DMA mask is 0x1fffffff"),
    "switch-mask": (dict(iommu="off", memory="512M", switch=True), 29,
                    r"it cannot address 0x\w+: its DMA mask is 0x1fffffff"),
    "topology": (dict(iommu="off", cpu=INTEL), 64,
                 "host bridge 8086:29c0 is not on the kernel's list"),
}
MODES = list(MACHINES)
# Where the driver goes under load.
LOADED = ["strict", "switch"]

REVOCATIONS = int(os.environ.get("REVOCATIONS", "10"))
REMOVALS = int(os.environ.get("REMOVALS", "5"))
LIMIT = 150 + 2 * REVOCATIONS + 4 * REMOVALS

EDU = "/sys/bus/pci/drivers/physdma_edu"
IVSHMEM = "/sys/bus/pci/drivers/physdma_ivshmem"


def machine(mode):
    shape, bits, _ = MACHINES[mode]
    return Machine(devices=[Edu(port=True, dma_bits=bits), Ivshmem(size_mb=4), Ivshmem(size_mb=16)],
                   trace=["vtd_dmar_translate"], hotplug=True, **shape)


class Setup:
    """The three devices, and where they are."""

    def __init__(self, t):
        self.t = t
        self.edu, self.source, self.target = t.machine.devices
        self.edu_at, self.source_at, self.target_at = (
            t.machine.address(device) for device in t.machine.devices)

    def base(self, address):
        """The physical address of the memory of the ivshmem at `address`."""
        return int(self.t.vm.sh(f"sed -n 3p /sys/bus/pci/devices/{address}/resource").split()[0], 0)

    def load(self, **parameters):
        """Loads edu's driver anew; it binds only when told."""
        words = " ".join(f"{name}={value:#x}" for name, value in parameters.items())
        self.t.vm.sh("echo 0 > /sys/bus/pci/drivers_autoprobe; rmmod physdma_edu 2>/dev/null; true")
        self.t.vm.load("physdma_edu", f"dma_bits={self.edu.dma_bits} {words}")

    def copy(self):
        """Copies as the driver was told when it was loaded."""
        self.t.vm.sh(f"echo {self.edu_at} > {EDU}/bind && echo {self.edu_at} > {EDU}/unbind")


def fill(device, offset, data):
    with open(device.memory, "r+b") as file:
        file.seek(offset)
        file.write(data)


def content(device, offset=0, size=-1):
    with open(device.memory, "rb") as file:
        file.seek(offset)
        return file.read(size)


def run(t):
    _, _, result = MACHINES[t.mode]
    with t.case("providers"):
        t.vm.load("physdma_ivshmem")
        t.vm.load("physdma")
        setup = Setup(t)
        for address in setup.source_at, setup.target_at:
            t.vm.wait_for(f"{address}: memory {setup.base(address):#x}-.* is open", limit=5)
    if result in ("Mapped", "Bus"):
        allowed(t, setup, result)
    else:
        refused(t, setup, result)
    with t.case("unload"):
        t.vm.unload("physdma_edu", "physdma_ivshmem", "physdma")


def refused(t, setup, reason):
    before = content(setup.target)
    for parameter, address in ("from", setup.source_at), ("to", setup.target_at):
        with t.case(f"refused: {parameter}"):
            setup.load(**{parameter: setup.base(address)})
            at = len(t.vm.log())
            try:
                setup.copy()
                raise AssertionError("the copy was not refused")
            except CommandError as error:
                assert "Invalid argument" in str(error), error
            t.vm.wait_for(f"{setup.edu_at}: no DMA to memory of {address}: {reason}", 5, at)
    with t.case("nothing was written"):
        time.sleep(0.3)
        assert content(setup.target) == before


def allowed(t, setup, origin):
    source, target = 0x3000, 5 * MB + 0x1000

    with t.case("one to the other"):
        data = os.urandom(SIZE)
        fill(setup.source, source, data)
        phys = setup.base(setup.source_at) + source, setup.base(setup.target_at) + target
        setup.load(**{"from": phys[0], "to": phys[1]})
        at = len(t.vm.log())
        setup.copy()
        assert content(setup.target, target, SIZE) == data, "that is not what was sent"
        assert not content(setup.target, 0, target).strip(b"\0"), "something lies before it"
        assert not content(setup.target, target + SIZE).strip(b"\0"), "something lies behind it"

    with t.case(f"told of it as {origin}"):
        said = re.findall(r"physdma_edu \S+ (reads from|writes to) 0x(\w+) \((\w+)\)",
                          t.vm.log()[at:])
        assert [word for word, *_ in said] == ["reads from", "writes to"], said
        for (_, dma, how), there in zip(said, phys):
            assert how == origin, said
            translated = t.machine.iommu == "strict"
            assert (int(dma, 16) != there) == translated, f"{dma} for {there:#x}"
            if translated:
                seen = re.findall(rf"vtd_dmar_translate .*iova 0x{dma} -> gpa 0x(\w+)",
                                  t.vm.trace.read_text(errors="replace"))
                seen = {int(gpa, 16) for gpa in seen}
                # The one may have been given the address that the other had.
                assert there in seen and seen <= set(phys), f"{dma} is {seen}, not {there}"

    with t.case("what is no provider's is refused"):
        ranges = sorted((setup.base(t.machine.address(device)), device.size_mb * MB)
                        for device in (setup.source, setup.target))
        # RAM, what lies before the lower one, and half of it behind the higher one.
        for parameters in {"from": 0x100000}, {"to": ranges[0][0] - SIZE}, \
                {"to": sum(ranges[1]) - SIZE // 2}:
            setup.load(**parameters)
            try:
                setup.copy()
                raise AssertionError(f"the copy was not refused: {parameters}")
            except CommandError as error:
                assert "Bad address" in str(error), error

    if t.mode not in LOADED:
        return
    with t.case("unbind waits for what is in flight"):
        waits(t, setup, target)
    with t.case(f"revoked under load, {REVOCATIONS} times"):
        revoked(t, setup, phys, target)
    with t.case(f"removed under load by surprise, {REMOVALS} times"):
        removed(t, setup, phys, target)
    with t.case("unplugged under load"):
        if t.vm.kernel.name == "kernel-debug":
            raise Skip("lockdep finds a cycle of locks in pciehp itself, and is of no use after that")
        unplugged(t, setup, phys, target)


def unchanged(setup, target, seconds):
    """Fails if something is written to the target's memory from now on."""
    canary = os.urandom(SIZE)
    fill(setup.target, target, canary)
    before = content(setup.target)
    time.sleep(seconds)
    assert content(setup.target) == before, "the memory was written to after its revocation"


def waits(t, setup, target):
    """A transfer ends 0.1 s after its start, and that is when the device writes: when the driver of
    the memory has gone for long, if it did not wait."""
    setup.load(to=setup.base(setup.target_at) + target)
    # Without another process, as there is no time for one.
    mapped = ("mapped() { while read provider bar client hops mapped in_flight rest; do "
              f"[ $provider-$client-$in_flight = {setup.target_at}-{setup.edu_at}-1 ] && return; "
              "done < /sys/kernel/debug/physdma/routes; return 1; }; ")
    seen = 0
    for _ in range(30):
        said = t.vm.sh(mapped + f"{{ (echo {setup.edu_at} > {EDU}/bind; echo $? > /tmp/status) & }}; "
                       "until mapped; do [ -s /tmp/status ] && echo over && exit; done; "
                       f"echo {setup.target_at} > {IVSHMEM}/unbind", limit=20)
        # On a busy host a transfer may be over before the shell has looked.
        over = said.strip() == "over"
        if not over:
            unchanged(setup, target, 0.3)
        # It came to its end.
        t.vm.sh(f"read status < /tmp/status; rm /tmp/status; echo {setup.edu_at} > {EDU}/unbind; "
                + ("" if over else f"echo {setup.target_at} > {IVSHMEM}/bind; ") + "exit $status")
        seen += not over
        if seen == 10:
            return
    assert seen, "no transfer was seen in flight"


class Load:
    """Copies again and again, whether or not that works."""

    def __init__(self, t, setup, phys):
        setup.load(**{"from": phys[0], "to": phys[1]})
        self.vm = t.vm
        t.vm.sh("rm -f /tmp/stop; : > /tmp/results; (until [ -e /tmp/stop ]; do "
                f"echo {setup.edu_at} 2>/dev/null > {EDU}/bind; echo $? >> /tmp/results; "
                f"echo {setup.edu_at} 2>/dev/null > {EDU}/unbind; done) >/dev/null 2>&1 &")
        self.wait("0")

    def wait(self, result):
        """Waits for a copy that begins after this and ends like that."""
        self.vm.sh("n=$(wc -l < /tmp/results); for try in $(seq 100); do "
                   f"tail -n +$((n + 2)) /tmp/results | grep -q '^{result}' && exit; sleep 0.1; "
                   "done; tail /tmp/results; exit 1", limit=30)

    def stop(self):
        self.vm.sh("touch /tmp/stop; wait; sleep 0.5")


def revoked(t, setup, phys, target):
    load = Load(t, setup, phys)
    for number in range(REVOCATIONS):
        # At another point of a copy each time.
        time.sleep(0.02 * (number % 13))
        t.vm.sh(f"echo {setup.target_at} > {IVSHMEM}/unbind")
        unchanged(setup, target, 0.25)
        t.vm.sh(f"echo {setup.target_at} > {IVSHMEM}/bind")
        if number % 5 == 0:
            load.wait("0")
    load.wait("0")
    load.stop()


def removed(t, setup, phys, target):
    """The device answers no more, and then the kernel is told."""
    load = Load(t, setup, phys)
    device = f"/sys/bus/pci/devices/{setup.target_at}"
    for number in range(REMOVALS):
        time.sleep(0.05 * (number % 5))
        t.vm.sh(f"printf '\\0\\0' | dd of={device}/config bs=1 seek=4 conv=notrunc 2>/dev/null; "
                f"sleep 0.1; echo 1 > {device}/remove")
        unchanged(setup, target, 0.25)
        t.vm.sh(f"echo 1 > /sys/bus/pci/rescan; echo {setup.target_at} > {IVSHMEM}/bind")
        assert setup.base(setup.target_at) + target == phys[1]
        load.wait("0")
    load.stop()


def unplugged(t, setup, phys, target):
    load = Load(t, setup, phys)
    t.vm.monitor(f"device_del ivshmem{t.machine.devices.index(setup.target)}")
    t.vm.sh(f"for try in $(seq 200); do [ -e /sys/bus/pci/devices/{setup.target_at} ] || exit 0; "
            "sleep 0.1; done; exit 1", limit=30)
    unchanged(setup, target, 0.5)
    load.stop()
