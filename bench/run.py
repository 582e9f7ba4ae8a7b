# SPDX-License-Identifier: GPL-2.0
"""What physdma costs beside the C stack, in instructions.

Boots a machine in which time is instructions for each IOMMU mode, loads the
benchmark module, prints a table and writes build/reports/bench.json.
"""

import json
import re
import sys

from harness import REPORTS
from harness.topology import Machine, PciTestdev
from harness.vm import Vm

MODES = ["off", "passthrough", "lazy", "strict"]

ROW = re.compile(r"physdma_bench: row\|(?P<name>[^|]+)\|(?P<ours>\d+)\|(?P<ours_spread>\d+)\|"
                 r"(?P<segments>\d+)\|(?P<peer>[^|]+)\|(?P<theirs>\d+)\|(?P<theirs_spread>\d+)\|"
                 r"(?P<peer_segments>\d+)")


def measure(mode: str) -> list[dict]:
    """The rows of one machine."""
    machine = Machine(iommu=mode, icount=True, devices=[PciTestdev()],
                      append=["kunit.autorun=0"])
    with Vm(machine, f"bench/{mode}", limit=300) as vm:
        vm.load("physdma_bench")
        vm.wait_for("physdma_bench: (done|failed)")
        log = vm.log()
        if "physdma_bench: done" not in log or vm.reports():
            sys.exit(f"bench: the run with the IOMMU {mode} failed, see {vm.console}")
    rows = []
    for row in ROW.finditer(log):
        ours, theirs = int(row["ours"]), int(row["theirs"])
        rows.append({
            "area": "map+unmap",
            "name": row["name"],
            "config": f"iommu={mode}",
            "physdma": ours,
            "peer": theirs,
            "peer_name": row["peer"],
            "unit": "instructions",
            "ratio": round(ours / theirs, 3),
            "spread": round(max(int(row["ours_spread"]) / ours,
                                int(row["theirs_spread"]) / theirs), 3),
        })
        print(f"{row['name']:36}{mode:12}{ours:>9}{theirs:>9}{ours / theirs:>8.2f}"
              f"{row['segments']:>8}{row['peer_segments']:>6}", flush=True)
    return rows


def main() -> None:
    print(f"{'map + unmap':36}{'IOMMU':12}{'physdma':>9}{'C':>9}{'ratio':>8}"
          f"{'segs':>8}{'C':>6}")
    rows = [row for mode in MODES for row in measure(mode)]
    REPORTS.mkdir(parents=True, exist_ok=True)
    report = REPORTS / "bench.json"
    report.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"Instructions per call; the C side is what nvme-pci does. All of it: {report}")


if __name__ == "__main__":
    main()
