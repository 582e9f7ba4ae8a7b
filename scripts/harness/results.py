# SPDX-License-Identifier: GPL-2.0
"""Results of cases, the report, the last line."""

import fnmatch
import json
import re
import threading
from pathlib import Path

from . import REPORTS


class Results:
    """What passed, failed and was skipped, in build/reports/test.json."""

    def __init__(self, report: Path = REPORTS / "test.json", only: str = ""):
        self._report = report
        self._only = only.split()
        self._rows: list[dict] = []
        self._reasons: dict[tuple[str, str], str] = {}
        self._lock = threading.Lock()
        # So that the report of a run that is interrupted is not the one before.
        report.unlink(missing_ok=True)

    def wanted(self, unit: str) -> bool:
        """Whether ONLY asks for this part: it names it, something it is part
        of or something in it, or is a pattern that fits."""
        return not self._only or any(
            f"{unit}/".startswith(f"{only.rstrip('/')}/") or only.startswith(f"{unit}/")
            or fnmatch.fnmatch(unit, only) for only in self._only)

    def add(self, suite: str, case: str, result: str, seconds: float, detail: str = "") -> None:
        """Records a case; result is "passed", "failed" or "skipped"."""
        assert result in ("passed", "failed", "skipped"), result
        with self._lock:
            self._rows.append({"suite": suite, "case": case, "result": result,
                               "seconds": round(seconds, 3)})
            print(f"{result:7} {suite}: {case} ({seconds:.1f} s)", flush=True)
            if detail and result == "failed":
                self._reasons[suite, case] = detail.splitlines()[-1]
            if detail and result != "passed":
                print("".join(f"        {line}\n" for line in detail.splitlines()[-30:]), end="",
                      flush=True)

    def withdraw(self, suite: str) -> None:
        """Forgets what was recorded of this suite, which is run again."""
        with self._lock:
            self._rows = [row for row in self._rows if row["suite"] != suite]

    def count(self) -> dict[str, int]:
        """How many cases passed, failed and were skipped."""
        return {result: sum(row["result"] == result for row in self._rows)
                for result in ("passed", "failed", "skipped")}

    def summary(self) -> str:
        """What came of it, in one line, with the cases that failed."""
        failed = [f"{row['suite']}: {row['case']}" for row in self._rows
                  if row["result"] == "failed"]
        said = ", ".join(f"{number} {result}" for result, number in self.count().items())
        return f"{said}: {'; '.join(failed)}" if failed else said

    def repeated(self) -> str:
        """What was done how often, all machines together, by the names of the cases that passed."""
        sums: dict[str, float] = {}
        for row in self._rows:
            found = re.fullmatch(r"(.*), ([\d.]+) (times|MiB)", row["case"])
            if found and row["result"] == "passed":
                what, number, unit = found.groups()
                what = what if unit == "times" else f"{what}, {unit}"
                sums[what] = sums.get(what, 0) + float(number)
        return ", ".join(f"{what}: {number:,.10g}" for what, number in sums.items())

    def part(self, name: str) -> "Part":
        """For the results of a part, which has this name before those of its suites."""
        return Part(self, name)

    def finish(self) -> int:
        """Writes the report, prints the last line; 0 if all is well."""
        self._report.parent.mkdir(parents=True, exist_ok=True)
        rows = sorted(self._rows, key=lambda row: row["suite"])
        self._report.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
        count = self.count()
        # What names a part of a suite has the whole of it run.
        unknown = [only for only in self._only
                   if not any(f"{row['suite']}/{row['case']}/".startswith(f"{only.rstrip('/')}/")
                              or fnmatch.fnmatch(row["suite"], only) for row in rows)]
        if unknown:
            print(f"ONLY={' '.join(unknown)} names no test; there are host, doctest/kernel, "
                  "kunit/MODULE and qemu/SCENARIO/MODE, for example qemu/ext4/strict")
        for row in rows:
            if row["result"] == "failed":
                reason = self._reasons.get((row["suite"], row["case"]), "")
                print(f"FAILED  {row['suite']}: {row['case']}" + (f": {reason}" if reason else ""))
        print(f"{count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped",
              flush=True)
        return 1 if count["failed"] or not count["passed"] or unknown else 0


class Part:
    """A part of the results, see Results.part()."""

    def __init__(self, results: Results, name: str):
        self._results = results
        self._name = name

    def add(self, suite: str, case: str, result: str, seconds: float, detail: str = "") -> None:
        """As in Results."""
        self._results.add(f"{self._name}/{suite}", case, result, seconds, detail)
