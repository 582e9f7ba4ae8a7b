# SPDX-License-Identifier: GPL-2.0
"""What the kernel says of two devices in machines of several shapes: whether
one reaches the memory of the other, how, and if not, why.

The modes are the machines; the KUnit module logs the verdicts.
"""

import re

from harness.topology import Edu, Ivshmem, Machine, Ssd

INTEL = "Skylake-Client-v1"  # whose host bridge is not on the kernel's list
NOT_LISTED = "host bridge 8086:29c0 is not on the kernel's list"
PORT = "0000:00:01.0"

# The machine, and what the kernel says of its two devices.
MACHINES = {
    "switch": (dict(switch=True, iommu="off", cpu=INTEL),
               "reaches", "BusAddress, distance 4"),
    "ports": (dict(iommu="off"),
              "reaches", "HostBridge, distance 4"),
    "ports-intel": (dict(iommu="off", cpu=INTEL),
                    "does not reach", f"{NOT_LISTED}: put both devices below one PCIe switch"),
    # A root port redirects if there is an IOMMU.
    "redirect": (dict(iommu="strict"),
                 "reaches", f"HostBridge, distance 2, ACS redirect at {PORT}"),
    "redirect-intel": (dict(iommu="strict", cpu=INTEL),
                       "does not reach", f"ACS redirect at {PORT}, and {NOT_LISTED}: "
                       f"boot with pci=disable_acs_redir={PORT}"),
    # What the line before recommends helps.
    "redirect-disabled": (dict(iommu="strict", cpu=INTEL,
                               append=[f"pci=disable_acs_redir={PORT}"]),
                          "reaches", "BusAddress, distance 2"),
}
MODES = list(MACHINES)


def machine(mode):
    made = Machine(**MACHINES[mode][0])
    if mode.startswith("redirect"):
        # Two functions of what is plugged into one port.
        made.devices = [Ivshmem(options={"multifunction": "on"}),
                        Edu(port=False, options={"bus": "port0", "addr": "0.1"})]
    else:
        made.devices = [Ssd(), Ivshmem()]
    return made


def run(t):
    with t.case("verdicts"):
        t.vm.load("pci_p2pdma_kunit")
        t.vm.sh("mount -t debugfs none /sys/kernel/debug 2>/dev/null; "
                "echo 1 > /sys/kernel/debug/kunit/pci_p2pdma_pairs/run")
        t.vm.unload("pci_p2pdma_kunit")
        said = re.findall(r"verdict: (\S+) (reaches|does not reach) (\S+): (.*\S)", t.vm.log())
        for client, how, provider, what in said:
            expected = MACHINES[t.mode][1:] if client != provider else \
                ("reaches", "BusAddress, distance 0")
            assert (how, what) == expected, f"{client} {how} {provider}: {what}"
        assert len(said) == 4, said
