# SPDX-License-Identifier: GPL-2.0
"""The documentation's example: a device reads one buffer and writes another.

Once as it is in the tree, and once built outside of it as anybody's module.
"""

import shutil
import subprocess

from harness import ROOT
from harness.topology import Edu, Machine

MODES = ["strict", "off", "swiotlb"]
SAYS = "4096 bytes went there and back unchanged"


def machine(mode):
    return Machine(iommu=mode, host_files=True, devices=[Edu(dma_bits=32)])


def run(t):
    with t.case("in the tree"):
        t.vm.load("physdma_edu")
        t.vm.wait_for(SAYS, limit=20)
        t.vm.unload("physdma_edu")
    if t.mode != "strict":
        return
    with t.case("outside of the tree"):
        outside = t.vm.files / "outside"
        shutil.copytree(ROOT / "drivers/edu", outside)
        done = subprocess.run(
            ["bash", "-c", '. scripts/common.sh && kmake "$0" M="$1" CONFIG_PHYSDMA_EDU=m modules',
             t.vm.kernel, outside], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        begin = len(t.vm.log())
        t.vm.sh(f"insmod /run/host{outside}/physdma_edu.ko")
        t.vm.wait_for(SAYS, limit=20, after=begin)
        t.vm.unload("physdma_edu")
