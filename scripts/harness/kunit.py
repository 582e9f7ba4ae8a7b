# SPDX-License-Identifier: GPL-2.0
"""KUnit suites and doc examples, their results read by the kernel's kunit.py.

The suites are modules, physdma/**/*_kunit.ko; they are loaded one after the
other in one machine. If one crashes it, the others get another machine.
"""

import json
import re
import subprocess
import time
from pathlib import Path

from . import klog
from .initramfs import modules
from .results import Results
from .topology import Edu, Ivshmem, Machine, PciTestdev, Ssd
from .vm import CommandError, Vm, VmError

DOCTESTS = "rust_doctests_kernel"
# The doc examples that are ours to keep: of the layer and of what patches/ add.
OUR_DOCTESTS = re.compile(r"_(physdma|block_mq|block_bio|pci)_")


def suites(kernel: Path) -> list[str]:
    """The names of the modules that hold suites."""
    return sorted(path.stem for path in modules(kernel)
                  if "physdma" in path.relative_to(kernel).parts and path.stem.endswith("_kunit"))


def machine() -> Machine:
    """What the suites find: real PCI devices behind a strict IOMMU."""
    # The last one shares the shared memory's root port, the third.
    return Machine(iommu="strict", append=["kunit.filter_glob=none"],
                   devices=[Ssd(cmb_mb=16), Ssd(block_size=4096),
                            Ivshmem(options={"multifunction": "on"}), Edu(),
                            PciTestdev(memory_mb=16 * 1024),
                            Edu(options={"bus": "port2", "addr": "0.1"})])


def run_suites(results: Results, kernel: Path, names: list[str]) -> None:
    """Loads each of these modules and records its cases."""
    pending = list(names)
    for boot in range(len(names)):
        if not pending:
            return
        try:
            with Vm(machine(), f"{kernel.name}/kunit-{boot}" if boot else f"{kernel.name}/kunit",
                    kernel, limit=400) as vm:
                boot_reports = vm.reports()
                vm.sh("printf '*' > /sys/module/kunit/parameters/filter_glob")
                # Where allocations can be made to fail, all can, and quietly.
                vm.sh("cd /sys/kernel/debug/failslab 2> /dev/null || exit 0; "
                      "echo N > ignore-gfp-wait; echo 0 > verbose")
                while pending:
                    load(results, vm, pending.pop(0))
                problems = boot_reports + vm.leaks()
                results.add("kunit/machine", "boot and leaks", "failed" if problems else "passed",
                            0, "\n".join(problems))
                vm.power_off()
        except VmError as error:
            results.add("kunit/machine", f"boot {boot}", "failed", 0, str(error))


def load(results: Results, vm: Vm, name: str) -> None:
    """Loads one module in the machine, records its cases, unloads it."""
    suite = f"kunit/{name}"
    begin = len(vm.log())
    start = time.monotonic()
    problem = ""
    try:
        vm.sh(f"echo physdma: begin {name} > /dev/kmsg")
        # All its cases run meanwhile.
        vm.load(name, limit=240)
        vm.sh(f"rmmod {name}; code=$?; echo physdma: end {name} > /dev/kmsg; exit $code")
        vm.wait_for(f"physdma: end {name}$", after=begin)
    except CommandError as error:
        problem = str(error)
    except VmError as error:
        record(results, suite, vm, vm.log()[begin:], time.monotonic() - start, str(error))
        raise
    record(results, suite, vm, vm.log()[begin:], time.monotonic() - start, problem)


def record(results: Results, suite: str, vm: Vm, log: str, seconds: float, problem: str) -> None:
    """Records the cases in a part of the log, and what else is wrong with it."""
    cases = parse(vm, log, suite.rpartition("/")[2])
    for group, case, result in cases:
        # The lines of the case, by its name, if it failed.
        results.add(suite if group in ("", suite.rpartition("/")[2]) else f"{suite}/{group}", case,
                    result, took(log, case), failure(log, case) if result == "failed" else "")
    reports = klog.reports(log, vm.expected)
    if problem or reports:
        results.add(suite, "kernel log", "failed", seconds,
                    "\n".join(filter(None, [problem, *reports, f"see {vm.console}"])))
    if not cases:
        results.add(suite, "results", "failed", seconds, f"no test ran; see {vm.console}")


def parse(vm: Vm, log: str, name: str) -> list[tuple[str, str, str]]:
    """(suite, case, result) of each case in a log, by the kernel's own parser."""
    part, report = vm.files / f"{name}.log", vm.files / f"{name}.json"
    part.write_text(log)
    report.unlink(missing_ok=True)
    tool = vm.kernel.parent / "linux/tools/testing/kunit/kunit.py"
    subprocess.run(["python3", "-B", tool, "parse", f"--json={report}", part], check=False,
                   stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    cases = []

    def walk(group: dict, path: list[str]) -> None:
        for case in group["test_cases"]:
            result = {"PASS": "passed", "SKIP": "skipped"}.get(case["status"], "failed")
            cases.append((path[0] if path else "", "/".join([*path[1:], case["name"] or "(crashed)"]), result))
        for sub in group["sub_groups"]:
            walk(sub, [*path, sub["name"]])

    if report.exists() and "KTAP version" in log:
        walk(json.loads(report.read_text()), [])
    return cases


def took(log: str, case: str) -> float:
    """Seconds of the machine's time from the line of the case before to this
    case's own."""
    previous = None
    for line in re.finditer(r"^\[ *([\d.]+)\] .*(?:KTAP version|# Subtest|ok \d+ (\S+))", log, re.M):
        if line[2] == case:
            return float(line[1]) - previous if previous is not None else 0
        previous = float(line[1])
    return 0


def failure(log: str, case: str) -> str:
    """What the log says before "not ok" of this case."""
    before = re.split(rf"\n[^\n]*not ok \d+ {re.escape(case)}\b", log)[0].splitlines()
    lines = []
    for line in reversed(before):
        if re.search(r"\] *(?:not )?ok \d+ |KTAP version|1\.\.\d+$", line):
            break
        lines.append(line)
    return "\n".join(reversed(lines[:30]))


def run_doctests(results: Results, kernel: Path) -> None:
    """Runs the examples of the kernel crate's documentation; records ours one
    by one, and of the rest those that fail."""
    start = time.monotonic()
    try:
        # They run before the machine's first program starts.
        with Vm(Machine(iommu="strict", devices=[Edu()], append=[f"kunit.filter_glob={DOCTESTS}"]),
                f"{kernel.name}/doctest", kernel) as vm:
            log = vm.log()
            cases = parse(vm, log, "doctest")
            for _, case, result in cases:
                case = case.removeprefix("rust_doctest_kernel_")
                if OUR_DOCTESTS.search(f"_{case}") or result == "failed":
                    name = f"rust_doctest_kernel_{case}"
                    results.add("doctest/kernel", case, result, took(log, name),
                                failure(log, name) if result == "failed" else "")
            ours = [case for _, case, _ in cases if OUR_DOCTESTS.search(case)]
            reports = vm.reports()
            if not ours:
                reports.append("no example of physdma ran")
            results.add("doctest/kernel", f"kernel log, {len(cases)} examples",
                        "failed" if reports else "passed", time.monotonic() - start,
                        "\n".join(reports))
            vm.power_off()
    except VmError as error:
        results.add("doctest/kernel", "machine", "failed", time.monotonic() - start, str(error))
