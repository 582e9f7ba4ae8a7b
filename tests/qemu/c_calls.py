# SPDX-License-Identifier: GPL-2.0
"""The KUnit suites of what C calls, below a switch: there memory of another
device has a bus address, which it has not in the machine of the other suites.
"""

from harness.topology import Ivshmem, Machine, PciTestdev, Ssd

MODES = ["switch"]
SUITES = ["physdma_c", "physdma_c_pages"]


def machine(mode):
    return Machine(iommu="off", switch=True, devices=[Ssd(), Ivshmem(), PciTestdev()])


def run(t):
    with t.case("load"):
        t.vm.load("physdma_c_kunit")
        t.vm.sh("mount -t debugfs none /sys/kernel/debug 2>/dev/null || true")
    for suite in SUITES:
        with t.case(suite):
            t.vm.sh(f"echo 1 > /sys/kernel/debug/kunit/{suite}/run")
            results = t.vm.sh(f"cat /sys/kernel/debug/kunit/{suite}/results")
            assert "not ok" not in results and f"ok 1 {suite}" in results, results
    with t.case("unload"):
        assert "by its bus address" in t.vm.log()
        t.vm.unload("physdma_c_kunit")
