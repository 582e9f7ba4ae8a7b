# SPDX-License-Identifier: GPL-2.0
"""A controller goes without a word, and one has a single interrupt.

Memory decoding is turned off, so that nothing reaches its registers (they
read as zeroes then; all ones are for KUnit). Who does I/O is told: if the
device is removed, when it does not come back, else when a request is late.
Nothing waits for ever, and another SSD, of which all queues share an
interrupt, goes on.
"""

import json

from harness.topology import Machine, Ssd

MODES = ["strict", "off"]
LIMIT = 200

FIO = "fio --direct=1 --ioengine=io_uring --allow_file_create=0 --thread --eta=never "
LOAD = ("cd /tmp; rm -f {name}.status; (" + FIO + "--name={name} --filename=/dev/{name} --size=32M "
        "--iodepth=32 --rw=randrw --bsrange=4k-128k --blockalign=4k --time_based --runtime=120 "
        ">{name}.log 2>&1; echo $? >{name}.status) & "
        "read before </sys/block/{name}/stat; "
        "while read now </sys/block/{name}/stat; test \"$now\" = \"$before\"; do sleep 0.1; done")
VERIFY = FIO + ("--name=verify --filename={disk} --size=4M --iodepth=16 --rw=randwrite --bs=4k "
                "--verify=crc32c --verify_fatal=1 --output-format=json")
DRIVER = "/sys/bus/pci/drivers/rnvme"


def machine(mode):
    # A table of one vector: without one for the admin queue alone.
    return Machine(iommu=mode, host_files=True,
                   devices=[Ssd(size_mb=64), Ssd(size_mb=64, options={"msix_qsize": 1})])


def run(t):
    with t.case("load"):
        # Late enough for a removal to be seen not to wait for it.
        t.vm.load("rnvme", "io_timeout=60")
        disk, single = (t.disk(ssd) for ssd in t.machine.devices)
        device = t.vm.sh(f"basename $(readlink -f /sys/block/{name(disk)}/device)").strip()

    with t.case("one interrupt for all queues"):
        vectors = t.vm.sh(f"ls $(readlink -f /sys/block/{name(single)}/device)/msi_irqs").split()
        assert len(vectors) == 1, vectors
        before = interrupts(t, vectors[0])
        done = verify(t, single)
        assert interrupts(t, vectors[0]) > before
        assert done, "no I/O"

    with t.case("removed under I/O"):
        start(t, disk)
        decode(t, device, False)
        # Half of how long a request is waited for, at most: a reset is tried.
        t.vm.sh(f"echo 1 > /sys/bus/pci/devices/{device}/remove", limit=30)
        told(t, disk, 20)
        t.vm.sh(f"! test -e {disk}")
        assert verify(t, single)

    with t.case("found again"):
        t.vm.sh("echo 1 > /sys/bus/pci/rescan", limit=20)
        assert t.disk(t.machine.devices[0]) == disk
        assert verify(t, disk)
        t.vm.unload("rnvme")

    with t.case("dead under I/O"):
        t.vm.load("rnvme", "io_timeout=1")
        # The one that was found again comes last.
        disk, single = (t.disk(ssd) for ssd in t.machine.devices)
        at = len(t.vm.log())
        start(t, disk)
        decode(t, device, False)
        t.vm.wait_for("the controller is dead", after=at, limit=20)
        told(t, disk, 20)
        # It stays where it was, with nothing in it.
        t.vm.sh(f"test -e {disk}; until test $(cat /sys/block/{name(disk)}/size) = 0; do "
                "sleep 0.1; done", limit=20)
        assert verify(t, single)

    with t.case("bound again"):
        t.vm.sh(f"echo {device} > {DRIVER}/unbind; ! test -e {disk}", limit=20)
        decode(t, device, True)
        t.vm.sh(f"echo {device} > {DRIVER}/bind", limit=20)
        assert t.disk(t.machine.devices[0]) == disk
        assert verify(t, disk)
        t.vm.unload("rnvme")


def name(disk):
    return disk.removeprefix("/dev/")


def start(t, disk):
    """Has fio do I/O, and returns when it does."""
    t.vm.sh(LOAD.format(name=name(disk)), limit=20)


def told(t, disk, limit):
    """Waits for fio, which must have met an error."""
    file = f"/tmp/{name(disk)}"
    status = t.vm.sh(f"until test -s {file}.status; do sleep 0.1; done; cat {file}.status",
                     limit=limit).strip()
    log = t.vm.sh(f"cat {file}.log")
    assert status != "0" and ("err= 5" in log or "err=19" in log), log


def verify(t, disk):
    """Bytes that were written to a disk and read back as they were."""
    report = t.vm.sh(VERIFY.format(disk=disk), limit=60)
    job = json.loads(report[report.index("{"):])["jobs"][0]
    assert job["error"] == 0
    return min(job["read"]["io_bytes"], job["write"]["io_bytes"])


def interrupts(t, vector):
    """How often one came."""
    line = t.vm.sh(f"grep '^ *{vector}:' /proc/interrupts").split()
    return sum(int(word) for word in line[1:] if word.isdigit())


def decode(t, device, on):
    """Turns memory decoding of a device on or off."""
    t.vm.sh(f"setpci -s {device} COMMAND={2 if on else 0}:2")
