# SPDX-License-Identifier: GPL-2.0
"""What physdma and rnvme cost beside the C stack, all in one kernel.

    python3 bench/run.py [quick]

Prints tables, and writes build/reports/bench.json; all but quick also writes
build/reports/bench.html, a page with plots of it.
"""

import json
import sys
import time

import endtoend
import instructions
import invalidations
import page
import sizes
from harness import REPORTS


def main() -> None:
    begin = time.monotonic()
    quick = sys.argv[1:] == ["quick"]
    rows = instructions.rows() + instructions.look_ups() + instructions.premapped_reads()
    if not quick:
        rows += instructions.with_kind() + invalidations.rows() + sizes.rows() + endtoend.rows()
    REPORTS.mkdir(parents=True, exist_ok=True)
    report = REPORTS / "bench.json"
    report.write_text(json.dumps(rows, indent=1) + "\n")
    print("The C side is what nvme-pci does, or C nvme itself; beside a premapped slice, our own "
          f"map and unmap. All of it: {report}")
    missed = [row for row in rows if missed_goal(row)]
    for row in missed:
        print(f"missed  {row['name']}, {row['config']}: {row['ratio'] or row['physdma']}, "
              f"goal {row['goal']}")
    if not quick:
        page.write(rows, REPORTS / "bench.html", missed_goal)
        print(f"With plots: {REPORTS / 'bench.html'}")
    print(f"{len(rows)} rows, {len(missed)} of them miss their goal; "
          f"{time.monotonic() - begin:.0f} s")


def missed_goal(row: dict) -> bool:
    goal = row.get("goal")
    if goal is None:
        return False
    if row["area"] in ("premapped", "IOMMU", "bytes"):
        return row["physdma"] > goal
    if row["area"] == "end to end":
        ratio = row["ratio"] if row["unit"].startswith("µs") else 2 - row["ratio"]
        return ratio - 1 > row["spread"]
    return row["ratio"] > goal


if __name__ == "__main__":
    main()
