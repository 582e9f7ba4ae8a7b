# SPDX-License-Identifier: GPL-2.0
"""What physdma and rnvme cost beside the C stack, all in one kernel.

    python3 bench/run.py [quick]

Prints tables, and writes build/reports/bench.json; all but quick also writes
build/reports/bench.html, a page with plots of it, and bench.md, the table that
README.md has.
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
import summary
from harness import REPORTS

# By how much a ratio may be off before it says little of who is behind.
UNSURE = 0.1

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
    missed = [row for row in rows if row.get("missed")]
    for row in missed:
        measured = row["physdma"] if row["area"] in ABSOLUTE else row["ratio"]
        print(f"missed  {row['name']}, {row['config']}: {measured}, goal {row['goal']}")
    if not quick:
        page.write(rows, REPORTS / "bench.html")
        summary.write(rows, REPORTS / "bench.md")
        print(f"With plots: {REPORTS / 'bench.html'}")
    unsure = [row for row in rows if row.get("doubt", 0) > UNSURE]
    for row in unsure:
        print(f"unsure  {row['name']}, {row['config']}: {row['ratio']} ± {row['doubt']}, "
              f"{row['unit']}")
    print(f"{len(rows)} rows, {len(missed)} of them miss their goal; {len(unsure)} are unsure, "
          f"for which the machine was too busy; {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
