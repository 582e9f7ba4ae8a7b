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
import growth
import instructions
import invalidations
import page
import sizes
from harness import REPORTS

# Whose goals are numbers, and not ratios.
ABSOLUTE = ["premapped", "IOMMU", "bytes"]


def main() -> None:
    begin = time.monotonic()
    quick = sys.argv[1:] == ["quick"]
    rows = instructions.rows() + instructions.look_ups() + instructions.premapped_reads()
    if not quick:
        rows += instructions.windows() + instructions.with_kind()
        rows += growth.rows() + invalidations.rows() + sizes.rows() + endtoend.rows()
    REPORTS.mkdir(parents=True, exist_ok=True)
    report = REPORTS / "bench.json"
    report.write_text(json.dumps(rows, indent=1) + "\n")
    print("The C side is what nvme-pci does, or C nvme itself; beside a premapped slice, our own "
          f"map and unmap. All of it: {report}")
    missed = [row for row in rows if missed_goal(row)]
    for row in missed:
        measured = row["physdma"] if row["area"] in ABSOLUTE else row["ratio"]
        print(f"missed  {row['name']}, {row['config']}: {measured}, goal {row['goal']}")
    if not quick:
        page.write(rows, REPORTS / "bench.html", missed_goal)
        print(f"With plots: {REPORTS / 'bench.html'}")
    print(f"{len(rows)} rows, {len(missed)} of them miss their goal; "
          f"{time.monotonic() - begin:.0f} s")


def missed_goal(row: dict) -> bool:
    if row.get("goal") is None:
        return False
    if "behind" in row:
        return row["behind"]
    return row["physdma" if row["area"] in ABSOLUTE else "ratio"] > row["goal"]


if __name__ == "__main__":
    main()
