# SPDX-License-Identifier: GPL-2.0
"""How clients reach a provider in machines of several shapes, beyond what the
kernel says of the two: whether the client can address the memory, and whether
all its DMA is bounced.

The modes are the machines; the KUnit module logs the routes.
"""

import re

from harness.topology import Edu, Ivshmem, Machine

BUS = r"reaches .*: Bus \{ offset: 0 \}, 4 hops"
BRIDGE = r"reaches .*: HostBridge, \d hops"
# The device addresses 28 bits, and the memory is just below 4 GiB.
MASK = r"does not reach .*: it cannot address 0xf[0-9a-f]{7}: its DMA mask is 0xfffffff"
BOUNCE = (r"does not reach .*: all its DMA is bounced through RAM: "
          r"boot without swiotlb=force, or with an IOMMU")
TOPOLOGY = (r"does not reach .*: host bridge 8086:29c0 is not on the kernel's list: "
            r"put both devices below one PCIe switch")

# The machine; what a client gets that addresses 32 bits, and one that does 28.
MACHINES = {
    "switch": (dict(switch=True, iommu="off"), BUS, MASK),
    "switch-bounced": (dict(switch=True, iommu="swiotlb"), BUS, MASK),
    "ports": (dict(iommu="off"), BRIDGE, MASK),
    "ports-passthrough": (dict(iommu="passthrough"), BRIDGE, MASK),
    "ports-strict": (dict(iommu="strict"), BRIDGE, BRIDGE),
    "ports-bounced": (dict(iommu="swiotlb"), BOUNCE, BOUNCE),
    "ports-intel": (dict(iommu="off", cpu="Skylake-Client-v1"), TOPOLOGY, TOPOLOGY),
}
MODES = list(MACHINES)


def machine(mode):
    # RAM has to fit 28 bits too, where nothing translates.
    made = Machine(memory="256M", **MACHINES[mode][0])
    made.devices = [Ivshmem(), Ivshmem(), Edu(port=True)]
    return made


def run(t):
    with t.case("routes"):
        t.vm.load("physdma_kunit")
        t.vm.sh("mount -t debugfs none /sys/kernel/debug 2>/dev/null; "
                "echo 1 > /sys/kernel/debug/kunit/physdma_reach/run")
        t.vm.unload("physdma_kunit")
        lines = re.findall(r"route: (\S+) ((?:reaches|does not reach) (\S+): .*\S)", t.vm.log())
        # Two providers; each is a client too.
        providers = {provider for _, _, provider in lines}
        assert len(lines) == 6 and len(providers) == 2, lines
        _, wide, narrow = MACHINES[t.mode]
        for client, what, provider in lines:
            expected = wide if client in providers else narrow
            if client == provider:
                expected = r"reaches .*: Internal \{ bar: 2, offset: 0 \}, 0 hops"
            assert re.fullmatch(expected, what), f"{client} {what}"
