# SPDX-License-Identifier: GPL-2.0
"""The table of results that README.md has: a part of the rows of one run."""

import subprocess
import sys
from collections import Counter
from datetime import date

from harness import ROOT

STRICT, OFF = "iommu=strict", "iommu=off"
PAGES = "128K in 32 pages"

# What it is headed; and of each row what it is called, its area, name and setting.
PARTS = {
    "map and unmap, instructions": [
        ("4 KiB of RAM, strict IOMMU", "map+unmap", "4K", f"{STRICT}, RAM"),
        ("4 KiB of RAM, no IOMMU", "map+unmap", "4K", f"{OFF}, RAM"),
        ("32 scattered pages of RAM, strict IOMMU", "map+unmap", PAGES, f"{STRICT}, RAM"),
        ("256 scattered pages of RAM, strict IOMMU", "map+unmap", "1M in 256 pages",
         f"{STRICT}, RAM"),
        ("32 scattered pages of RAM, no IOMMU", "map+unmap", PAGES, f"{OFF}, RAM"),
        ("4 KiB of another device, bus address", "map+unmap", "4K",
         f"{OFF}, bus address, with pages"),
        ("the same without `struct page`", "map+unmap", "4K",
         f"{OFF}, bus address, without pages"),
        ("32 pages of another device, host bridge, strict IOMMU", "map+unmap", PAGES,
         f"{STRICT}, host bridge, with pages"),
        ("4 KiB of RAM, strict IOMMU, `CONFIG_PHYSDMA_BVEC_KIND`", "map+unmap", "4K",
         f"{STRICT}, bvecs with kind, RAM"),
        ("4 KiB of a buffer that was mapped before", "premapped", "4K",
         f"{STRICT}, RAM"),
        ("is an address a device's? RAM, no provider", "look-up", "RAM",
         "0 ranges, tree of depth 0"),
        ("the same with 1,024 providers' ranges", "look-up", "RAM",
         "1024 ranges, tree of depth 3"),
    ],
    "IOTLB invalidations of a request, strict IOMMU": [
        ("32 scattered pages", "IOMMU", PAGES, f"{STRICT}, IOTLB invalidations"),
    ],
    "bytes": [
        ("a piece of memory", "bytes", "a piece of memory", ""),
        ("to lend a BAR of 16 GiB to others", "bytes", "memory to lend a BAR", "16 GiB"),
    ],
    "a program's read, instructions of the whole system": [
        (f"{size}, {which}", "instructions of an I/O", f"read of {name} at a time",
         f"{iommu}, none")
        for size, name in (("4 KiB, 32 at a time", "4 KiB, 32"), ("128 KiB", "128 KiB, 1"))
        for iommu, which in ((OFF, "no IOMMU"), (STRICT, "strict IOMMU"))
    ],
}


def number(value: float) -> str:
    return f"{round(value):,}"


def line(name: str, row: dict) -> str:
    if row["area"] in ("premapped", "look-up"):
        # C has nothing to compare it with.
        goal = f" (goal: {row['goal']})" if row.get("missed") else ""
        return f"| {name} | {number(row['physdma'])}{goal} | | |"
    ratio = row["ratio"] if "pairs" in row else row["physdma"] / row["peer"]
    said = f"{ratio:.2f}" if ratio >= 0.005 else ""
    if row["area"] == "end to end":
        said += f" ± {row['doubt']:.2f}"
    if row.get("missed"):
        said += f" (goal: {row['goal']})"
    return f"| {name} | {number(row['physdma'])} | {number(row['peer'])} | {said} |"


def table(rows: list[dict]) -> list[str]:
    known = {(row["area"], row["name"], row["config"]): row for row in rows}
    lines = ["| | physdma | C | ratio |", "|---|---:|---:|---:|"]
    for heading, part in PARTS.items():
        lines.append(f"| **{heading}** | | | |")
        for name, *key in part:
            if tuple(key) not in known:
                sys.exit(f"bench: there is no row {key} for the table")
            lines.append(line(name, known[tuple(key)]))
    lines.append("| **rnvme beside C nvme**, I/Os or MiB a second: all rates | | | |")
    lines += [line(f"{row['name']}, {row['config']}", row) for row in rows
              if row["area"] == "end to end" and "CPU per" not in row["unit"]]
    return lines


def write(rows: list[dict], path) -> None:
    missed = Counter(row["area"] + (", bvecs with kind" if "kind" in row["config"] else "")
                     for row in rows if row.get("missed"))
    commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"],
                            capture_output=True, text=True, check=False).stdout.strip()
    of = ", ".join(f"{count} of {area}" for area, count in missed.items()) or "none"
    path.write_text("\n".join([
        *table(rows), "",
        f"{len(rows)} rows, of commit {commit or 'unknown'}, {date.today()}; "
        f"{missed.total()} miss their goal: {of}.", ""]))
