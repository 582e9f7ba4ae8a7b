# SPDX-License-Identifier: GPL-2.0
"""What the Makefile calls.

    python3 -m harness test [--debug|--kind]  all tests; ONLY= in the environment: some
    python3 -m harness soak [--debug]    what is done again and again, many times
    python3 -m harness configs           the layer's own tests, without what it can do without
    python3 -m harness suites KERNEL REPORT  the suites of a kernel that somebody else built
    python3 -m harness run               the demonstrations
    python3 -m harness shell [MODE]      a machine to try things in
"""

import argparse
import os
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

from . import BUILD, REPORTS, ROOT, host, kunit, scenario
from .results import Results
from .topology import IOMMU_MODES, Edu, Ivshmem, Machine, Ssd
from .vm import boot_command


# What a soak runs and how often it does what it does, unless the environment says otherwise.
SOAK = {
    "ONLY": "qemu/recovery qemu/removal qemu/p2p_edu/strict qemu/p2p_edu/switch "
            "qemu/pageless/switch qemu/pageless/strict qemu/phys_bios",
    "UNBINDS": "100", "RESETS": "50", "TIMEOUTS": "10", "REVOCATIONS": "1000", "REMOVALS": "100",
    "CANARY": "60", "SIZE_MB": "1024", "INPUTS": "1000000",
}
SOAKS = ROOT / "tests/soaks.md"

# The same for a kernel full of checks, on which a round can take two minutes.
FEW = {"UNBINDS": "2", "RESETS": "2", "TIMEOUTS": "1"}

# What depends on the kind in a PhysBvec.
KIND = "host kunit doctest qemu/p2p_* qemu/page_backed qemu/ivshmem qemu/routes qemu/scattered qemu/c_calls"


def test(kernel_name: str) -> int:
    """Everything that ONLY asks for, several machines at a time."""
    if kernel_name == "kernel-debug":
        for name, value in FEW.items():
            os.environ.setdefault(name, value)
    return run_tests(kernel_name).finish()


def soak(kernel_name: str) -> int:
    """The same for what a soak runs; what came of it is another line of tests/soaks.md."""
    for name, value in SOAK.items():
        if not os.environ.get(name):
            os.environ[name] = value

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True,
                              check=False).stdout.strip()

    # As it is now: it may be another one in an hour.
    commit = git("rev-parse", "--short=10", "HEAD") or "no commit"
    if git("status", "--porcelain", "--", ".", f":!{SOAKS.relative_to(ROOT)}"):
        commit += ", changed"
    results = run_tests(kernel_name)
    status = results.finish()
    with open(SOAKS, "a", encoding="ascii") as file:
        file.write(f"| {date.today()} | {commit} | {kernel_name} | {results.repeated()} | "
                   f"{results.summary()} |\n")
    return status


def run_tests(kernel_name: str) -> Results:
    """Runs everything that ONLY asks for."""
    kernel = BUILD / kernel_name
    only = os.environ.get("ONLY") or (KIND if kernel_name == "kernel-kind" else "")
    results = Results(REPORTS / f"{kernel_name.replace('kernel', 'test')}.json", only)
    jobs = []
    if results.wanted("kunit"):
        there = kunit.suites(kernel)
        suites = [name for name in there if results.wanted(f"kunit/{name}")]
        if suites:
            jobs.append(("kunit/machine", lambda: kunit.run_suites(results, kernel, suites)))
        elif not there:
            results.add("kunit/machine", "suites", "failed", 0, "no *_kunit.ko was built")
    if results.wanted("doctest/kernel"):
        jobs.append(("doctest/kernel", lambda: kunit.run_doctests(results, kernel)))
    if results.wanted("host"):
        jobs.append(("host/runner", lambda: host.run(results)))
    jobs += scenario.runs(results, kernel)
    # A machine has two processors, and takes two GiB at most.
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 31
    with ThreadPoolExecutor(max_workers=max(1, min(os.cpu_count(), memory))) as pool:
        for suite, job in [(suite, pool.submit(job)) for suite, job in jobs]:
            try:
                job.result()
            except Exception:  # a mistake in the runner must not pass for success
                results.add(suite, "runner", "failed", 0, traceback.format_exc())
    return results


def configs() -> int:
    """Builds kernels without what scripts/without/ takes away, one after the
    other in one directory, and runs on each the tests that are left."""
    results = Results(REPORTS / "test-configs.json", os.environ.get("ONLY", ""))
    for path in sorted((ROOT / "scripts/without").glob("*.config")):
        name = f"without-{path.stem}"
        if not results.wanted(name):
            continue
        start = time.monotonic()
        build = subprocess.run([ROOT / "scripts/kernel.sh", "kernel-without", path.stem],
                               check=False, stdin=subprocess.DEVNULL)
        results.add(name, "builds", "failed" if build.returncode else "passed",
                    time.monotonic() - start)
        if build.returncode:
            continue
        # By a name of its own, which the reports have too.
        kernel = BUILD / name
        kernel.unlink(missing_ok=True)
        kernel.symlink_to("kernel-without")
        part = results.part(name)
        built = kunit.suites(kernel)
        for module in sorted({path.stem for path in (ROOT / "tests/kunit").glob("*_kunit.*")}):
            if module not in built:
                part.add(f"kunit/{module}", "module", "skipped", 0, f"not built {name}")
        kunit.run_suites(part, kernel, built)
        kunit.run_doctests(part, kernel)
        if path.stem == "PCI_P2PDMA":
            routes = scenario.load(ROOT / "tests/qemu/routes.py")
            scenario.run_whole(routes, lambda routes=routes, kernel=kernel, part=part: scenario.Run(
                routes, "disabled", "rnvme", part, kernel, "qemu/routes/disabled"), part)
    if results.wanted("arm"):
        start = time.monotonic()
        build = subprocess.run([ROOT / "scripts/kernel.sh", "kernel-arm"], check=False,
                               stdin=subprocess.DEVNULL)
        results.add("arm", "builds, without SWIOTLB", "failed" if build.returncode else "passed",
                    time.monotonic() - start)
        results.add("arm", "tests", "skipped", 0,
                    "compiled only: x86_64, where the machines are, cannot do without SWIOTLB")
    return results.finish()


def suites(kernel: Path, report: Path) -> int:
    """The KUnit suites that this kernel was built with, and its doc examples."""
    results = Results(report)
    kunit.run_suites(results, kernel, kunit.suites(kernel))
    kunit.run_doctests(results, kernel)
    return results.finish()


def run() -> int:
    """The demonstration: tests/qemu/ext4.py in strict mode, and its table."""
    driver = os.environ.get("DRIVER") or "rnvme"
    results = Results(REPORTS / "run.json")
    module = scenario.load(ROOT / "tests/qemu/ext4.py")
    module.SIZE_MB, module.DEPTHS = 64, (1, 8, 64)
    demonstration = scenario.Run(module, "strict", driver, results, BUILD / "kernel", "qemu/run")
    print(f"An ext4 on an emulated NVMe SSD, driven by {driver} behind an Intel IOMMU in strict mode;\n"
          "fio writes and verifies requests of 4 KiB to 1 MiB; then the host reads the disk's image.")
    demonstration.whole(module)
    if demonstration.failed:
        return results.finish()
    print()
    for name, value, meaning in demonstration.table:
        print(f"    {name:24} {value:>16}   {meaning}")
    print(f"\n{demonstration.conclusion}\n"
          f"The machine's log: {demonstration.vm.console.relative_to(ROOT)}")
    if driver == "rnvme":
        pageless(results)
    return results.finish()


def pageless(results: Results) -> None:
    """The demonstration's end: tests/qemu/pageless.py in short."""
    module = scenario.load(ROOT / "tests/qemu/pageless.py")
    module.SIZE_MB, module.HOST_FILES, module.run = 16, True, module.demonstrate
    demonstration = scenario.Run(module, "strict", "rnvme", results, BUILD / "kernel",
                                 "qemu/run-pageless")
    print("\nA program copies from one SSD to another by way of the memory of a third device,\n"
          "which has no struct page; the host compares the images.")
    demonstration.whole(module)
    if not demonstration.failed:
        print(f"\n{demonstration.conclusion}\n"
              f"The machine's log: {demonstration.vm.console.relative_to(ROOT)}")


def shell(mode: str) -> int:
    """A machine whose console is this terminal."""
    files = REPORTS / "shell"
    files.mkdir(parents=True, exist_ok=True)
    machine = Machine(iommu=mode, devices=[Ssd(), Ssd(block_size=4096, cmb_mb=16), Edu(dma_bits=32),
                                           Ivshmem(size_mb=16)],
                      host_files=True, append=["kunit.autorun=0"])
    return subprocess.run([*boot_command(machine, BUILD / "kernel", files, ["physdma.shell"]),
                           "-serial", "mon:stdio"], check=False).returncode


def main() -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="harness", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run")
    for name in "test", "soak":
        tests = commands.add_parser(name)
        tests.add_argument("--debug", dest="kernel", action="store_const", const="kernel-debug",
                           default="kernel", help="on the kernel full of checks")
        tests.add_argument("--kind", dest="kernel", action="store_const", const="kernel-kind",
                           help="on the kernel with CONFIG_PHYSDMA_BVEC_KIND")
    commands.add_parser("configs")
    built = commands.add_parser("suites")
    built.add_argument("kernel", type=Path)
    built.add_argument("report", type=Path)
    shells = commands.add_parser("shell")
    shells.add_argument("mode", nargs="?", default="strict", choices=IOMMU_MODES)
    arguments = parser.parse_args()
    if arguments.command in ("test", "soak"):
        return {"test": test, "soak": soak}[arguments.command](arguments.kernel)
    if arguments.command == "configs":
        return configs()
    if arguments.command == "suites":
        return suites(arguments.kernel, arguments.report)
    if arguments.command == "run":
        return run()
    return shell(arguments.mode)


sys.exit(main())
