# SPDX-License-Identifier: GPL-2.0
"""What the Makefile calls.

    python3 -m harness test [--debug|--kind]  all tests; ONLY= in the environment: some
    python3 -m harness configs           the layer's own tests, without what it can do without
    python3 -m harness run               the demonstration
    python3 -m harness shell [MODE]      a machine to try things in
"""

import argparse
import os
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

from . import BUILD, REPORTS, ROOT, host, kunit, scenario
from .initramfs import initramfs
from .results import Results
from .topology import IOMMU_MODES, Machine, Ssd
from .vm import boot_command


# What depends on the kind in a PhysBvec.
KIND = "host kunit doctest qemu/p2p_* qemu/page_backed qemu/ivshmem qemu/routes qemu/scattered qemu/c_calls"


def test(kernel_name: str) -> int:
    """Everything that ONLY asks for, two machines at a time."""
    kernel = BUILD / kernel_name
    only = os.environ.get("ONLY") or (KIND if kernel_name == "kernel-kind" else "")
    results = Results(REPORTS / f"{kernel_name.replace('kernel', 'test')}.json", only)
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
    return results.finish()


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
    if results.wanted("arm"):
        start = time.monotonic()
        build = subprocess.run([ROOT / "scripts/kernel.sh", "kernel-arm"], check=False,
                               stdin=subprocess.DEVNULL)
        results.add("arm", "builds, without SWIOTLB", "failed" if build.returncode else "passed",
                    time.monotonic() - start)
        results.add("arm", "tests", "skipped", 0,
                    "compiled only: x86_64, where the machines are, cannot do without SWIOTLB")
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
    print()
    for name, value in demonstration.table:
        print(f"    {name:24} {value:>16}")
    print(f"\nthe machine's log: {demonstration.vm.console.relative_to(ROOT)}")
    return results.finish()


def shell(mode: str) -> int:
    """A machine whose console is this terminal."""
    files = REPORTS / "shell"
    files.mkdir(parents=True, exist_ok=True)
    machine = Machine(iommu=mode, devices=[Ssd(), Ssd(block_size=4096, cmb_mb=16)],
                      host_files=True, append=["kunit.autorun=0"])
    return subprocess.run([*boot_command(machine, BUILD / "kernel", files, ["physdma.shell"]),
                           "-serial", "mon:stdio"], check=False).returncode


def main() -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="harness", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run")
    tests = commands.add_parser("test")
    tests.add_argument("--debug", dest="kernel", action="store_const", const="kernel-debug",
                       default="kernel", help="on the kernel full of checks")
    tests.add_argument("--kind", dest="kernel", action="store_const", const="kernel-kind",
                       help="on the kernel with CONFIG_PHYSDMA_BVEC_KIND")
    commands.add_parser("configs")
    shells = commands.add_parser("shell")
    shells.add_argument("mode", nargs="?", default="strict", choices=IOMMU_MODES)
    arguments = parser.parse_args()
    if arguments.command == "test":
        return test(arguments.kernel)
    if arguments.command == "configs":
        return configs()
    if arguments.command == "run":
        return run()
    return shell(arguments.mode)


sys.exit(main())
