# SPDX-License-Identifier: GPL-2.0
"""What in a kernel log is a failure, whoever passed."""

import re

# Each is a report that a healthy kernel never prints.
REPORTS = re.compile("|".join([
    r"\bWARNING: ",
    r"\bBUG: ",
    r"kernel BUG at",
    r"\bOops\b",
    r"Kernel panic",
    r"general protection fault",
    r"unable to handle",
    r"rcu: INFO: .*stall",
    r"\bINFO: task .* blocked for more than",
    r"INFO: trying to register non-static key",
    r"possible (?:recursive locking|circular locking|irq lock inversion)",
    r"inconsistent lock state",
    r"suspicious RCU usage",
    r"bad unlock balance",
    r"UBSAN:",
    r"KASAN:",
    r"DMA-API:.*(?:device driver|exceeds|leak|mapping error)",
    r"DMAR: (?:\[|DRHD: handling fault)",
    r"kmemleak: \d+ new suspected memory leaks",
    r"refcount_t: ",
    r"list_(?:add|del) corruption",
    r"sleeping function called from invalid context",
    r"scheduling while atomic",
    r"(?:irq|nobody cared).*\bnobody cared",
    r"\brust_kernel: panicked",
]))


def reports(log: str, expected: list[str] = ()) -> list[str]:
    """The lines of a log that report a failure, but for those that match one
    of the patterns in `expected`."""
    allowed = [re.compile(pattern) for pattern in expected]
    return [line for line in log.splitlines()
            if REPORTS.search(line) and not any(a.search(line) for a in allowed)]
