# SPDX-License-Identifier: GPL-2.0
"""Machines and tests.

topology.py  what a machine consists of, and QEMU's arguments for it
initramfs.py the first files of a machine
vm.py        a running machine: commands in it, its console, its end
klog.py      what in a kernel log is a failure
results.py   results of cases, the report, the last line
kunit.py     KUnit suites and doc examples
host.py      cargo test of the pure logic
scenario.py  whole-machine scenarios, tests/qemu/*.py
"""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"
REPORTS = BUILD / "reports"

QEMU = os.environ.get("QEMU") or "qemu-system-x86_64"
