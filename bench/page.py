# SPDX-License-Identifier: GPL-2.0
"""The results of the benchmark as one page with plots, which needs nothing else.
gnuplot draws them."""

import html
import subprocess
from collections import defaultdict
from datetime import date

STYLE = """
body { font-family: sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; font-size: 85%; margin: 1em 0 2em; }
td, th { padding: .15em .7em; border-bottom: 1px solid #ddd; text-align: right; }
td:nth-child(-n+2), th:nth-child(-n+2) { text-align: left; }
tr.missed td { background: #fdecea; }
svg { max-width: 100%; height: auto; }
"""

# A sentence for each figure.
MEANINGS = {
    "map+unmap": "Instructions to map and unmap one request, as parts of what the C stack takes for "
                 "the same request object: 1.0 is the same, less is better. Where time is "
                 "instructions they repeat; each row is the median of five times 400 calls.",
    "premapped": "Instructions for the memory of a request that is a slice of a buffer that was "
                 "mapped before, as parts of what it takes to map and unmap it.",
    "windows": "Instructions to map and unmap RAM without an IOMMU, where an operator could look at "
               "it and does not, and where all of it is recorded.",
    "look-up": "Instructions to find out whose memory an address is, by how many ranges there are, "
               "beside C's look-up in the same tree alone.",
    "growth": "Instructions to map and unmap a request by the number of pieces that it has, beside "
              "the C stack. Both scales are logarithmic.",
    "two processors": "How many times as many requests two processors map and unmap for one device "
                      "as one does, beside the C stack: two is the most that there can be. These "
                      "are times, of processors that are emulated.",
    "premapped reads": "A program's reads of 4 KiB from rnvme behind a strict IOMMU: into registered "
                       "buffers, as parts of reads into buffers that are mapped for each.",
    "IOMMU": "What the IOMMU is asked to do for one request, behind a strict IOMMU.",
    "bytes": "Bytes of what a request keeps, and what it takes to lend a BAR of a device to others: "
             "without a struct page, and with one for each of its pages.",
    "instructions of an I/O": "Instructions that the whole system spends on one read of a program, "
                              "by io_uring with fixed buffers, from rnvme beside C nvme: the "
                              "median of ten pairs. How many answers come at once depends on how "
                              "fast the emulator is, and with it how often the processor is "
                              "interrupted. One is behind if that is by more than 2%.",
    "end to end": "rnvme beside C nvme, in turn on identical disks of one machine: the median of the "
                  "ratios of ten pairs, and how far the middle half of them is apart. More I/Os per "
                  "second are better, and less time of the processor.",
}


def plot(script, data):
    """What gnuplot draws, as SVG to be put into a page."""
    settings = "set terminal svg size 900,{height} font 'sans,11' background '#ffffff'\n"
    lines = script.splitlines()
    height = int(lines[0])
    done = subprocess.run(["gnuplot"], input=settings.format(height=height) + "$data << END\n" +
                          data + "END\n" + "\n".join(lines[1:]) + "\n",
                          capture_output=True, text=True, check=True)
    return done.stdout[done.stdout.index("<svg"):]


def quoted(text):
    return '"' + text.replace('"', "'").replace("_", " ") + '"'


def bars(rows):
    """The ratio of each row, with what is wanted and the spread."""
    data = "".join(f"{place} {row['ratio']} {row.get('spread') or 0} "
                   f"{quoted(row['name'] + ', ' + row['config'])}\n"
                   for place, row in enumerate(reversed(rows)))
    return plot(f"""{90 + 19 * len(rows)}
set lmargin 62
set yrange [-0.7:{len(rows) - 0.3}]
set xrange [0:*]
set grid x
set key off
set arrow from 1, graph 0 to 1, graph 1 nohead lc rgb '#c00000' lw 2
set xlabel 'ratio'
set style fill solid 0.7
plot $data using ($2/2):1:($2/2):(0.35):yticlabels(4) with boxxyerror lc rgb '#4477aa', \\
     '' using 2:1:($3/2) with xerrorbars lc rgb '#222222' pt 0""", data)


def look_ups(rows):
    """Instructions of a look-up among so many ranges."""
    points = [(int(row["config"].split()[0]), row["physdma"], row["peer"]) for row in rows
              if row["name"] != "RAM"]
    return lines(points, "ranges", "physdma", "mtree load() alone", "")


def growth(rows):
    """Instructions of a map and unmap of so many pieces, one plot for each configuration."""
    drawn = ""
    for config in dict.fromkeys(row["config"] for row in rows):
        points = [(int(row["name"].split()[0]), row["physdma"], row["peer"]) for row in rows
                  if row["config"] == config]
        drawn += f"<p>{html.escape(config)}</p>" + \
            lines(points, "pieces", "physdma", "C", "set logscale y")
    return drawn


def lines(points, what, ours, theirs, more):
    """Two lines: instructions by how much there is of something."""
    data = "".join(f"{x} {y} {z or 'NaN'}\n" for x, y, z in points)
    return plot(f"""360
set logscale x 2
set yrange [{1 if more else 0}:*]
set grid
set key left top
set xlabel '{what}'
set ylabel 'instructions'
{more}
plot $data using 1:2 with linespoints lw 2 pt 7 title '{ours}', \\
     '' using 1:3 with linespoints lw 2 pt 7 title '{theirs}'""", data)


def table(rows):
    lines = ["<tr><th>what</th><th>where</th><th>ours</th><th>theirs</th><th>ratio</th>"
             "<th>goal</th><th>spread</th><th>unit</th></tr>"]
    for row in rows:
        cells = [row["name"], row["config"], row["physdma"], row["peer"], row["ratio"],
                 row.get("goal"), row.get("spread"), row["unit"]]
        words = ["" if cell is None else cell if isinstance(cell, str) else f"{cell:,}"
                 for cell in cells]
        lines.append(f"<tr{' class=missed' if row.get('missed') else ''}>" +
                     "".join(f"<td>{html.escape(word)}</td>" for word in words) + "</tr>")
    return "<table>" + "\n".join(lines) + "</table>"


def write(rows, path):
    areas = defaultdict(list)
    for row in rows:
        areas[row["area"]].append(row)
    parts = []
    for area, found in areas.items():
        drawn = look_ups(found) if area == "look-up" else growth(found) if area == "growth" else \
            bars([row for row in found if row["ratio"] is not None]) if area != "bytes" else ""
        parts.append(f"<h2>{html.escape(area)}</h2><p>{html.escape(MEANINGS[area])}</p>{drawn}"
                     f"{table(found)}")
    count = sum(row.get("missed", False) for row in rows)
    path.write_text(f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>physdma: measured beside the C stack</title>
<style>{STYLE}</style></head><body>
<h1>physdma, measured beside the C stack</h1>
<p>{date.today()}: {len(rows)} rows, of which {count} miss their goal; those are coloured. Both
sides are of one kernel, in QEMU's emulation of one machine: ratios mean something, times do not.
Made by <code>make bench</code>.</p>
{"".join(parts)}</body></html>
""")
