# SPDX-License-Identifier: GPL-2.0
"""The documentation's examples: a device reads one buffer and writes another,
and a device opens its memory to others.

Once as they are in the tree, and once built outside of it as anybody's module.
"""

import shutil
import subprocess

from harness import ROOT
from harness.topology import Edu, Ivshmem, Machine

MODES = ["strict", "off", "swiotlb"]
SAYS = {
    "edu": "4096 bytes went there and back unchanged",
    "ivshmem": "is open to other devices",
}


def machine(mode):
    # Without an IOMMU RAM has to be where the device can address it.
    bits = 28 if mode == "strict" else 32
    return Machine(iommu=mode, host_files=True, devices=[Edu(dma_bits=bits), Ivshmem()])


def run(t):
    edu, _ = t.machine.devices
    with t.case("in the tree"):
        t.vm.load("physdma_edu", f"dma_bits={edu.dma_bits}")
        t.vm.wait_for(SAYS["edu"], limit=20)
        t.vm.unload("physdma_edu")
    if t.mode != "strict":
        return
    for name, says in SAYS.items():
        with t.case(f"{name}, outside of the tree"):
            outside = t.vm.files / name
            shutil.copytree(ROOT / "drivers" / name, outside)
            done = subprocess.run(
                ["bash", "-c", '. scripts/common.sh && kmake "$0" M="$1" "$2" modules',
                 t.vm.kernel, outside, f"CONFIG_PHYSDMA_{name.upper()}=m"],
                cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            begin = len(t.vm.log())
            t.vm.sh(f"insmod /run/host{outside}/physdma_{name}.ko")
            t.vm.wait_for(says, limit=20, after=begin)
            t.vm.unload(f"physdma_{name}")
