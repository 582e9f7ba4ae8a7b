# SPDX-License-Identifier: GPL-2.0
"""How the cost of a map grows: with the pieces of a request, in instructions; and
with a second processor that does the same for the same device, in requests a
second."""

import re
import sys

from harness.topology import Machine, PciTestdev

from instructions import ROW, bench

CPUS = re.compile(r"physdma_bench: cpus\|([^|]+)\|([^|]+)\|(\d+)\|(\d+)")
MODES = ["off", "strict"]


def pieces(mode):
    machine = Machine(iommu=mode, devices=[PciTestdev()])
    found = []
    for row in ROW.finditer(bench(machine, f"growth-{mode}", parameters="growth=1")):
        ours, theirs = int(row["ours"]), int(row["theirs"])
        found.append({
            "area": "growth", "name": row["name"], "config": f"iommu={mode}, RAM",
            "physdma": ours, "peer": theirs, "peer_name": row["peer"], "unit": "instructions",
            "ratio": round(ours / theirs, 3),
            "spread": round(max(int(row["ours_spread"]) / ours,
                                int(row["theirs_spread"]) / theirs), 3),
        })
        print(f"{row['name']:34}{mode + ', RAM':40}{ours:>9}{theirs:>9}{ours / theirs:>8.2f}",
              flush=True)
    if len(found) != 9:
        sys.exit(f"bench: {len(found)} requests of 1 to 256 pieces")
    return found


def processors(mode):
    """Twice as much, if neither waits for the other: the C stack shares locks of the IOMMU too."""
    log = bench(Machine(iommu=mode, devices=[PciTestdev()]), f"cpus-{mode}",
                parameters="growth=1", icount=False)
    times = {(name, way): (int(ratio) / 100, int(spread) / 100)
             for name, way, ratio, spread in CPUS.findall(log)}
    found = []
    for name in dict.fromkeys(name for name, _ in times):
        (ours, our_spread), (theirs, spread) = times[name, "physdma"], \
            times[name, "blk_rq_dma_map_iter"]
        found.append({
            "area": "two processors", "name": name, "config": f"iommu={mode}, RAM",
            "physdma": ours, "peer": theirs, "peer_name": "blk_rq_dma_map_iter",
            "unit": "times one processor's rate", "ratio": round(ours / theirs, 3),
            "spread": max(our_spread, spread),
        })
        print(f"{name + ', two processors':34}{mode + ', RAM':40}{ours:>9.2f}{theirs:>9.2f}"
              f"{ours / theirs:>8.2f} times one's rate", flush=True)
    if len(found) != 2:
        sys.exit("bench: nothing is known of two processors")
    return found


def rows():
    print(f"\n{'growth':34}{'':40}{'physdma':>9}{'C':>9}{'ratio':>8}")
    return [row for mode in MODES for row in pieces(mode)] + \
        [row for mode in MODES for row in processors(mode)]
