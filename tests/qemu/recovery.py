# SPDX-License-Identifier: GPL-2.0
"""Under I/O, the driver goes, the device is pulled out, reset, and slow.

No request is lost, done twice or left hanging: fio, which verifies what it
wrote, either goes on or is told, and the driver can always be loaded again.
Whatever happens to one SSD, the disks of the other one do not notice.
"""

import os
from contextlib import contextmanager

from harness.topology import Machine, Ssd

MODES = ["strict", "off"]

UNBINDS = int(os.environ.get("UNBINDS", "4"))
REMOVALS = int(os.environ.get("REMOVALS", "1"))
RESETS = int(os.environ.get("RESETS", "3"))
TIMEOUTS = int(os.environ.get("TIMEOUTS", "2"))
LIMIT = 300 + 20 * UNBINDS + 20 * REMOVALS + 20 * RESETS + 40 * TIMEOUTS

FIO = ("fio --size={size} --direct=1 --ioengine=io_uring --allow_file_create=0 --thread "
       "--eta=never ")
LOAD = FIO + "--iodepth=32 --rw=randrw --bsrange=4k-128k --blockalign=4k --time_based --runtime=60"
# Only to the disk: what QEMU has begun to read it goes on with when the device is gone, into memory
# that is somebody else's by then.
WRITES = LOAD.replace("randrw", "randwrite")
VERIFY = FIO + ("--iodepth=32 --rw=randwrite --bs=4k --verify=crc32c --verify_fatal=1 "
                "--loops={loops}")
# Few requests: the other SSD is the one that has much to do.
WITNESS = VERIFY + " --iodepth=2 --rate_iops=50"

START = ("cd /tmp; rm -f {id}.status; ({fio} >{id}.log 2>&1 & echo $! >{id}.pid; "
         "wait $!; echo $? >{id}.status) & ")
# Until there was I/O, on each disk.
IDLE = "read {name} </sys/block/{name}/stat; "
BUSY = "while read now </sys/block/{name}/stat; test \"$now\" = \"${name}\"; do sleep 0.1; done; "


class Controller:
    """An SSD, its PCI address, and its disks by name. There is one fio for all of them."""

    def __init__(self, t, ssd):
        self.t = t
        self.ssd = ssd
        self.disks = self.find()
        self.device = self.sh(f"basename $(readlink -f /sys/block/{self.disks[0]}/device)").strip()

    def sh(self, command, **words):
        return self.t.vm.sh(command, **words)

    def find(self):
        """The names of its disks, when all are there."""
        return [self.t.disk(self.ssd, n + 1).removeprefix("/dev/")
                for n in range(self.ssd.namespaces)]

    def start(self, fio, size="32M", loops=1000):
        """Starts fio, and returns when there is I/O on each disk."""
        fio = fio.format(size=size, loops=loops)
        fio += "".join(f" --name={name} --filename=/dev/{name}" for name in self.disks)
        self.sh("".join(IDLE.format(name=name) for name in self.disks) +
                START.format(id=self.device, fio=fio) +
                "".join(BUSY.format(name=name) for name in self.disks), limit=20)

    def running(self):
        """Fails unless fio is still there."""
        self.sh(f"cd /tmp; test -e {self.device}.status && cat {self.device}.log && exit 1; true")

    def status(self, limit=20):
        """Waits for fio; with which status it ended."""
        return int(self.sh(f"cd /tmp; until test -s {self.device}.status; do sleep 0.1; done; "
                           f"read status <{self.device}.status; echo $status", limit=limit))

    def errors(self):
        """How many disks fio met an error on."""
        return int(self.sh(f"grep -c 'jobs=1): err= *[1-9]' /tmp/{self.device}.log; true"))

    def interrupt(self):
        """Ends fio, if it is there, whatever came of it."""
        self.sh(f"cd /tmp; test -e {self.device}.status || kill -INT $(cat {self.device}.pid)")
        self.status()

    def stop(self):
        """Ends fio, and fails if it met an error."""
        self.interrupt()
        assert not self.errors(), self.sh(f"cat /tmp/{self.device}.log")

    @contextmanager
    def unaware(self):
        """Its disks do I/O meanwhile, and nothing happens to them."""
        at = len(self.t.vm.log())
        self.start(WITNESS, size="256k")
        done = self.requests()
        yield
        self.running()
        assert all(now > before for now, before in zip(self.requests(), done)), "no I/O meanwhile"
        self.stop()
        seen = [line for line in self.t.vm.log()[at:].splitlines()
                if any(f"dev {name}," in line for name in self.disks) or
                self.device in line and ("reset" in line or "dead" in line)]
        assert not seen, "\n".join(seen)

    def requests(self):
        """How many requests each disk has done."""
        return [sum(map(int, line.split()[0:5:4])) for line in self.sh(
            "cat " + " ".join(f"/sys/block/{name}/stat" for name in self.disks)).splitlines()]


def machine(mode):
    return Machine(iommu=mode, host_files=True,
                   devices=[Ssd(size_mb=64), Ssd(size_mb=64, namespaces=2, block_size=4096)])


def run(t):
    with t.case("load"):
        t.vm.load("rnvme", "io_timeout=1")
        one, two = both = [Controller(t, ssd) for ssd in t.machine.devices]

    driver = "/sys/bus/pci/drivers/rnvme"
    with t.case(f"unbind under I/O, {UNBINDS} times"):
        for ctrl, other, times in ((one, two, UNBINDS // 2), (two, one, UNBINDS - UNBINDS // 2)):
            with other.unaware():
                for _ in range(times):
                    ctrl.start(LOAD)
                    t.vm.sh(f"set -e; echo {ctrl.device} > {driver}/unbind; " +
                            " ".join(f"! test -e /dev/{name};" for name in ctrl.disks))
                    assert ctrl.status(limit=10), "fio was not told"
                    assert ctrl.errors() == len(ctrl.disks)
                    t.vm.sh(f"set -e; echo {ctrl.device} > {driver}/bind; " +
                            " ".join(f"test -e /dev/{name};" for name in ctrl.disks))
                assert ctrl.find() == ctrl.disks

    with t.case(f"pulled out under I/O, {REMOVALS} times"), one.unaware():
        device = f"/sys/bus/pci/devices/{two.device}"
        for _ in range(REMOVALS):
            two.start(WRITES)
            # It answers no more (setpci COMMAND=0), and then the kernel is told.
            t.vm.sh(f"set -e; printf '\\0\\0' | dd of={device}/config bs=1 seek=4 conv=notrunc "
                    f"2>/dev/null; echo 1 > {device}/remove; ! test -e {device}")
            assert two.status(limit=10), "fio was not told"
            assert two.errors() == len(two.disks)
            t.vm.sh("echo 1 > /sys/bus/pci/rescan")
            assert two.find() == two.disks

    with t.case(f"reset under I/O, {RESETS} times"), one.unaware():
        # Nobody tells the driver: it finds the controller disabled when requests time out.
        two.start(VERIFY)
        for _ in range(RESETS):
            at = len(t.vm.log())
            t.vm.sh(f"echo 1 > /sys/bus/pci/devices/{two.device}/reset")
            t.vm.wait_for("the controller was reset", after=at, limit=20)
            t.vm.sh("sleep 0.5")
            two.running()
        two.stop()

    with t.case(f"time-outs, {TIMEOUTS} times"), one.unaware():
        # One namespace is slow: its controller is reset, and the other one's requests come again.
        for _ in range(TIMEOUTS):
            at = len(t.vm.log())
            slow(t, 1)
            two.start(VERIFY, size="2M", loops=1)
            t.vm.wait_for("aborting it", after=at, limit=20)
            t.vm.wait_for("the controller was reset", after=at, limit=20)
            slow(t, 0)
            assert two.status(limit=60) == 0, "an error, or data that differ"

    with t.case("unload under I/O"):
        for ctrl in both:
            ctrl.start(LOAD)
        t.vm.sh("! rmmod rnvme")
        for ctrl in both:
            ctrl.interrupt()
        t.vm.unload("rnvme")


def slow(t, iops):
    """Lets the second SSD's first namespace do `iops` requests a second; 0 is as many as it can."""
    limits = {key: 0 for key in ("bps", "bps_rd", "bps_wr", "iops_rd", "iops_wr")}
    t.vm.qmp("block_set_io_throttle", device="nvme1n1", iops=iops, **limits)
