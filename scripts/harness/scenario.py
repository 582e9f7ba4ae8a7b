# SPDX-License-Identifier: GPL-2.0
"""Whole-machine scenarios: every tests/qemu/*.py is one.

A scenario is a module with

    MODES = [...]            IOMMU modes that it runs in; all, if not given
    DRIVERS = [...]          drivers that it runs with; rnvme, if not given
    KERNELS = [...]          names of the kernels that it runs on; all, if not given
    def machine(mode): ...   the Machine
    def run(t): ...          what happens in it; t is a Run

A case that raises is failed, and the scenario ends there.
"""

import importlib.util
import os
import re
import shutil
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from . import BUILD, ROOT
from .results import Results
from .topology import IOMMU_MODES, Device
from .vm import RESTARTS, CommandError, Vm, VmError


class Skip(Exception):
    """Ends a scenario that cannot run here; says why."""


class Ended(Exception):
    """Ends a scenario of which a case failed."""


class Run:
    """A scenario in one mode with one driver."""

    def __init__(self, scenario: ModuleType, mode: str, driver: str, results: Results,
                 kernel: Path, suite: str):
        self.mode = mode
        self.driver = driver
        self.suite = suite
        self.machine = scenario.machine(mode)
        self.machine.append.append("kunit.autorun=0")
        self.vm = Vm(self.machine, f"{kernel.name}/{suite.removeprefix('qemu/')}", kernel,
                     limit=getattr(scenario, "LIMIT", 240))
        # What `make run` shows: rows of name, value and meaning, and a sentence.
        self.table: list[tuple[str, str, str]] = []
        self.conclusion = ""
        self.failed = False
        self._results = results
        self._cases = 0

    def _record(self, case: str, result: str, seconds: float, detail: str = "") -> None:
        self.failed |= result == "failed"
        self._results.add(self.suite, case, result, seconds, detail)

    @contextmanager
    def case(self, name: str):
        """A case: what the with-statement holds."""
        start = time.monotonic()
        self._cases += 1
        try:
            yield
        except Skip as reason:
            self._record(name, "skipped", time.monotonic() - start, str(reason))
        except (CommandError, VmError, AssertionError, OSError) as error:
            if isinstance(error, AssertionError):
                detail = str(error) or traceback.format_exc(limit=-1)
            else:
                detail = str(error)
            self._record(name, "failed", time.monotonic() - start, detail)
            raise Ended from error
        else:
            self._record(name, "passed", time.monotonic() - start)

    def load_driver(self) -> None:
        """Loads the driver; its disks are there when this returns."""
        self.vm.load(self.driver)
        for device in self.machine.devices:
            if hasattr(device, "images") and not device.detached:
                self.disk(device)

    def unload_driver(self) -> None:
        """Unloads the driver and what only it needed."""
        self.vm.unload(*{"nvme": ["nvme", "nvme_core"]}.get(self.driver, [self.driver]))

    def disk(self, device: Device, namespace: int = 1, limit: float = 10) -> str:
        """The disk of this SSD's namespace, such as /dev/rnvme0n1, when it is there."""
        address = self.machine.address(device)
        return self.vm.sh(
            f"for try in $(seq {int(limit * 10)}); do for disk in /sys/block/*n{namespace}; do "
            f"case $(readlink -f $disk) in */{address}/*) echo /dev/${{disk##*/}}; exit;; esac; "
            f"done; sleep 0.1; done; echo no disk of {address} namespace {namespace}; exit 1"
        ).strip()

    def counters(self) -> dict[str, int]:
        """What the driver counted, as far as it says so in the log, in a line
        with "counters:" and words such as requests=12. The last one counts."""
        lines = re.findall(rf"{self.driver}\b.*\bcounters: (.*)", self.vm.log())
        return {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", lines[-1])} if lines \
            else {}

    def whole(self, scenario: ModuleType) -> None:
        """Runs it all. The disks' images stay if something failed."""
        start = time.monotonic()
        try:
            with self.vm:
                try:
                    scenario.run(self)
                finally:
                    self._end()
            if not self._cases:
                self._record("scenario", "failed", 0, "it has no case")
        except Ended:
            pass
        except Skip as reason:
            self._record("scenario", "skipped", time.monotonic() - start, str(reason))
        except Exception:  # of the scenario itself: a failure like any other
            self._record("scenario", "failed", time.monotonic() - start, traceback.format_exc())
        if not self.failed:
            self.vm.remove_images()

    def _end(self) -> None:
        leaks = self.vm.leaked
        if self.vm.alive():
            try:
                leaks = self.vm.leaks()
            except VmError as error:
                leaks = [str(error)]
        reports = self.vm.reports() + leaks
        self._record("kernel log", "failed" if reports else "passed", 0,
                     "\n".join([*reports, f"see {self.vm.console.relative_to(ROOT)}"]))


def load(path: Path) -> ModuleType:
    """The scenario in this file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def runs(results: Results, kernel: Path = BUILD / "kernel"):
    """(suite, function) for each scenario, mode and driver that is wanted."""
    for path in sorted((ROOT / "tests/qemu").glob("*.py")):
        try:
            scenario = load(path)
        except Exception:  # whatever a file may raise
            results.add(f"qemu/{path.stem}", "scenario", "failed", 0, traceback.format_exc())
            continue
        if kernel.name not in getattr(scenario, "KERNELS", [kernel.name]):
            continue
        named = os.environ.get("DRIVER")
        drivers = [named] if named else getattr(scenario, "DRIVERS", ["rnvme"])
        for mode in getattr(scenario, "MODES", IOMMU_MODES):
            for driver in drivers:
                suite = f"qemu/{path.stem}/{mode}" + (f"/{driver}" if driver != "rnvme" else "")
                if results.wanted(suite):
                    yield suite, lambda s=scenario, m=mode, d=driver, u=suite: \
                        run_whole(s, lambda: Run(s, m, d, results, kernel, u), results)


def run_whole(scenario: ModuleType, make: Callable[[], Run], results: Results) -> None:
    """Runs it all; and once more, if it failed in a machine that was broken."""
    run = make()
    run.whole(scenario)
    if run.failed and run.vm.emulator_lost() and RESTARTS.acquire(blocking=False):
        kept = run.vm.files.with_name(f"{run.vm.files.name}-lost")
        shutil.rmtree(kept, ignore_errors=True)
        run.vm.files.rename(kept)
        results.withdraw(run.suite)
        print(f"note    {run.suite}: run again, as the emulator lost what a processor wrote, see "
              f"{kept.relative_to(ROOT)}", flush=True)
        make().whole(scenario)
