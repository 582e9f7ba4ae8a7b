# SPDX-License-Identifier: GPL-2.0
"""What the Makefile calls.

    python3 -m harness test [--debug]    all tests; ONLY= in the environment: some
    python3 -m harness soak [--debug]    what is done again and again, many times
    python3 -m harness run               the demonstration
    python3 -m harness shell [MODE]      a machine to try things in
"""

import argparse
import os
import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from datetime import date

from . import BUILD, REPORTS, ROOT, host, kunit, scenario
from .initramfs import initramfs
from .results import Results
from .topology import IOMMU_MODES, Edu, Ivshmem, Machine, Ssd
from .vm import boot_command


# What a soak runs and how often it does what it does, unless the environment says otherwise.
SOAK = {
    "ONLY": "qemu/recovery qemu/removal qemu/p2p_edu/strict qemu/p2p_edu/switch",
    "UNBINDS": "100", "RESETS": "50", "TIMEOUTS": "10", "REVOCATIONS": "1000", "REMOVALS": "100",
    "UNPLUGS": "20", "CANARY": "60",
}
SOAKS = ROOT / "tests/soaks.md"


def test(kernel_name: str) -> int:
    """Everything that ONLY asks for, two machines at a time."""
    results = run_tests(kernel_name)
    return results.finish()


def soak(kernel_name: str) -> int:
    """The same for what a soak runs; what came of it is another line of tests/soaks.md."""
    for name, value in SOAK.items():
        if not os.environ.get(name):
            os.environ[name] = value
    results = run_tests(kernel_name)
    status = results.finish()

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True,
                              check=False).stdout.strip()

    commit = git("rev-parse", "--short=10", "HEAD") or "no commit"
    if git("status", "--porcelain", "--", ".", f":!{SOAKS.relative_to(ROOT)}"):
        commit += ", changed"
    with open(SOAKS, "a", encoding="ascii") as file:
        file.write(f"| {date.today()} | {commit} | {kernel_name} | {results.repeated()} | "
                   f"{results.summary()} |\n")
    return status


def run_tests(kernel_name: str) -> Results:
    """Runs everything that ONLY asks for."""
    kernel = BUILD / kernel_name
    report = "test.json" if kernel_name == "kernel" else "test-debug.json"
    results = Results(REPORTS / report, os.environ.get("ONLY", ""))
    initramfs(kernel)
    jobs = []
    suites = [name for name in kunit.suites(kernel) if results.wanted(f"kunit/{name}")]
    if suites:
        jobs.append(("kunit", lambda: kunit.run_suites(results, kernel, suites)))
    elif not kunit.suites(kernel):
        results.add("kunit", "suites", "failed", 0, "no *_kunit.ko was built")
    if results.wanted("doctest/kernel"):
        jobs.append(("doctest", lambda: kunit.run_doctests(results, kernel)))
    if results.wanted("host"):
        jobs.append(("host", lambda: host.run(results)))
    jobs += scenario.runs(results, kernel)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for suite, job in [(suite, pool.submit(job)) for suite, job in jobs]:
            try:
                job.result()
            except Exception:  # a mistake in the runner must not pass for success
                results.add(suite, "runner", "failed", 0, traceback.format_exc())
    return results


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
    return results.finish()


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
        tests.add_argument("--debug", action="store_true", help="on the kernel full of checks")
    shells = commands.add_parser("shell")
    shells.add_argument("mode", nargs="?", default="strict", choices=IOMMU_MODES)
    arguments = parser.parse_args()
    if arguments.command in ("test", "soak"):
        execute = {"test": test, "soak": soak}[arguments.command]
        return execute("kernel-debug" if arguments.debug else "kernel")
    if arguments.command == "run":
        return run()
    return shell(arguments.mode)


sys.exit(main())
