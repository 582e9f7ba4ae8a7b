# SPDX-License-Identifier: GPL-2.0
"""cargo test of the pure logic, tests/host."""

import os
import re
import subprocess
import time

from . import BUILD, REPORTS, ROOT
from .results import Results


def run(results: Results) -> None:
    """Records each test of the crate, without and with the kind in a PhysBvec."""
    run_with(results, "host", "")
    run_with(results, "host/kind", "--cfg CONFIG_PHYSDMA_BVEC_KIND")


def run_with(results: Results, unit: str, flags: str) -> None:
    """Records each test, compiled with these flags."""
    start = time.monotonic()
    environment = {**os.environ, "CARGO_TARGET_DIR": str(BUILD / unit.replace("/", "-")), "RUSTFLAGS": flags}
    done = subprocess.run(
        ["cargo", "test", "--offline", "--quiet", "--", "--format=pretty", "--test-threads=2"],
        cwd=ROOT / "tests/host", env=environment, text=True, check=False, timeout=300,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    log = REPORTS / f"{unit.replace('/', '-')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(done.stdout)
    seconds = time.monotonic() - start
    cases = re.findall(r"^test (\S+)(?: - .*)? \.\.\. (ok|FAILED|ignored)", done.stdout, re.M)
    words = {"ok": "passed", "FAILED": "failed", "ignored": "skipped"}
    for case, word in cases:
        module, _, name = case.rpartition("::")
        suite = "/".join([unit, *filter(None, [module.replace("::tests", "")])])
        said = re.search(rf"^---- {re.escape(case)} stdout ----\n(.*?)\n\n", done.stdout, re.M | re.S)
        results.add(suite, name, words[word], seconds / len(cases), said[1] if said else "")
    if not cases or (done.returncode and not any(word == "FAILED" for _, word in cases)):
        results.add(f"{unit}/runner", "cargo test", "failed", seconds, done.stdout)
