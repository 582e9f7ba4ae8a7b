# SPDX-License-Identifier: GPL-2.0
"""No memory: each allocation of a probe fails in turn, or the first of them.

The shell that binds the device tells the kernel which of its allocations is to
fail. Whatever was done until then is undone, and the next probe finds
everything as it was; that nothing leaked, kmemleak says at the end.
"""

import os

from harness.topology import Ivshmem, Machine, Ssd

MODES = ["strict"]
KERNELS = ["kernel-debug"]  # Others cannot fail allocations.
LIMIT = 900

FAILSLAB = "/sys/kernel/debug/failslab"
# How it ended, and whether the allocation is still to come. In a shell of its own: what is told to
# one is not told to others.
BIND = ("(echo {nth} >/proc/self/fail-nth; echo {address} >{driver}/bind; code=$?; "
        "read left </proc/self/fail-nth; echo $code $left) 2>/tmp/error; cat /tmp/error")
# How many of a probe's allocations fail, in turn: the first ones.
MOST = int(os.environ.get("ALLOCATIONS", "200"))


def machine(mode):
    return Machine(iommu=mode, devices=[Ssd(cmb_mb=4, pmr_mb=4), Ivshmem(size_mb=4)])


def run(t):
    ssd, ivshmem = t.machine.devices
    with t.case("load"):
        t.vm.load("physdma")
        t.vm.load("physdma_ivshmem")
        t.vm.load("rnvme")
        t.disk(ssd)
        t.vm.sh(f"echo N >{FAILSLAB}/ignore-gfp-wait; echo 0 >{FAILSLAB}/verbose")
    with t.case("ivshmem"):
        each_fails(t, t.machine.address(ivshmem), "physdma_ivshmem")
    with t.case("rnvme"):
        each_fails(t, t.machine.address(ssd), "rnvme")
    with t.case("unload"):
        disk = t.disk(ssd)
        t.vm.sh(f"dd if={disk} of=/dev/null bs=1M count=4")
        t.unload_driver()
        t.vm.unload("physdma_ivshmem", "physdma")


def each_fails(t, address, name):
    """Binds the device again and again, and each time the next allocation of the probe fails."""
    driver = f"/sys/bus/pci/drivers/{name}"
    failed = 0
    t.vm.sh(f"echo {address} >{driver}/unbind")
    for nth in range(1, MOST + 1):
        at = len(t.vm.log())
        words = t.vm.sh(BIND.format(nth=nth, address=address, driver=driver), limit=30).split()
        code, left, why = words[0], words[1:2], " ".join(words[2:])
        if left and left[0] != "0":
            # There are no more.
            assert code == "0", why
            t.vm.sh(f"echo {address} >{driver}/unbind", limit=30)
            break
        if code != "0":
            # A BAR that there is no memory to note for is busy, says C.
            assert "allocate memory" in why or "busy" in why and \
                "can't reserve" in t.vm.log()[at:], f"allocation {nth}: {why}"
            failed += 1
        # Some it can do without.
        t.vm.sh(f"! [ -e {driver}/{address} ] || echo {address} >{driver}/unbind", limit=30)
    print(f"note    {t.suite}: {name}: {failed} of {nth} allocations are missed", flush=True)
    assert failed > 0
    # All is as it was.
    t.vm.sh(f"echo {address} >{driver}/bind", limit=30)
