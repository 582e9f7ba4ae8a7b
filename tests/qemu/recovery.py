# SPDX-License-Identifier: GPL-2.0
"""Under I/O, the driver goes, the device is reset, and the device is slow.

No request is lost, done twice or left hanging: fio, which verifies what it
wrote, either goes on or is told, and the driver can always be loaded again.
"""

import os

from harness.topology import Machine, Ssd

MODES = ["strict", "off"]

UNBINDS = int(os.environ.get("UNBINDS", "10"))
RESETS = int(os.environ.get("RESETS", "3"))
TIMEOUTS = int(os.environ.get("TIMEOUTS", "2"))
LIMIT = 200 + 4 * UNBINDS + 6 * RESETS + 20 * TIMEOUTS

FIO = ("fio --filename={disk} --allow_file_create=0 --size={size}M --direct=1 --ioengine=io_uring "
       "--iodepth=32 --eta=never ")
LOAD = FIO + "--name=load --rw=randrw --bsrange=4k-128k --blockalign=4k --time_based --runtime=60"
VERIFY = FIO + ("--name=check --rw=randwrite --bs=4k --verify=crc32c --verify_fatal=1 "
                "--loops={loops}")
START = "({fio} >/tmp/fio.log 2>&1; echo $? >/tmp/status) & "
# Until there is I/O, and until there is no program any more.
BUSY = "until grep -q '[1-9]' /sys/block/{name}/inflight; do sleep 0.05; done; sleep 0.3; "
END = "while pgrep -x fio >/dev/null; do sleep 0.1; done; "


def machine(mode):
    return Machine(iommu=mode, host_files=True, devices=[Ssd(size_mb=64)])


def run(t):
    ssd, = t.machine.devices
    with t.case("load"):
        t.vm.load("rnvme", "io_timeout=1")
        disk = t.disk(ssd)
        name = disk.rpartition("/")[2]
        device = t.vm.sh(f"basename $(readlink -f /sys/block/{name}/device)").strip()

    def start(fio, **words):
        """Starts a program, and returns when it does I/O."""
        words = {"size": 32, **words}
        t.vm.sh((START + BUSY).format(fio=fio.format(disk=disk, **words), name=name))

    driver = "/sys/bus/pci/drivers/rnvme"
    with t.case(f"unbind under I/O, {UNBINDS} times"):
        for _ in range(UNBINDS):
            start(LOAD)
            t.vm.sh(f"set -e; echo {device} > {driver}/unbind; ! test -e {disk}")
            t.vm.sh(END + "test $(cat /tmp/status) != 0", limit=10)
            t.vm.sh(f"echo {device} > {driver}/bind")
            assert t.disk(ssd) == disk

    with t.case(f"reset under I/O, {RESETS} times"):
        # Nobody tells the driver: it finds the controller disabled when requests time out.
        start(VERIFY, loops=1000)
        for _ in range(RESETS):
            at = len(t.vm.log())
            t.vm.sh(f"echo 1 > /sys/bus/pci/devices/{device}/reset")
            t.vm.wait_for("the controller was reset", after=at, limit=20)
            t.vm.sh("sleep 0.5; pgrep -x fio")
        t.vm.sh("killall -INT fio; " + END + "cat /tmp/fio.log; ! grep '^verify:\\|err= *[1-9]' "
                "/tmp/fio.log", limit=20)

    with t.case(f"time-outs, {TIMEOUTS} times"):
        for _ in range(TIMEOUTS):
            at = len(t.vm.log())
            slow(t, 1)
            start(VERIFY, size=2, loops=1)
            t.vm.wait_for("aborting it", after=at, limit=20)
            t.vm.wait_for("the controller was reset", after=at, limit=20)
            slow(t, 0)
            t.vm.sh(END + "cat /tmp/fio.log; test $(cat /tmp/status) = 0", limit=60)

    with t.case("unload under I/O"):
        start(LOAD)
        t.vm.sh("! rmmod rnvme; killall -INT fio; " + END, limit=20)
        t.vm.unload("rnvme")


def slow(t, iops):
    """Lets the disk do `iops` requests a second; 0 is as many as it can."""
    limits = {key: 0 for key in ("bps", "bps_rd", "bps_wr", "iops_rd", "iops_wr")}
    t.vm.qmp("block_set_io_throttle", device="nvme0n1", iops=iops, **limits)
