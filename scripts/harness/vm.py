# SPDX-License-Identifier: GPL-2.0
"""A running machine.

    with Vm(machine, "some/name") as vm:
        vm.load("rnvme")
        print(vm.sh("fio ..."))

Each command has a time limit, and so has the machine as a whole, whatever
becomes of this process. The console is in build/reports/NAME/console.log.
"""

import base64
import itertools
import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from . import BUILD, QEMU, REPORTS, klog
from .initramfs import initramfs, modules
from .topology import Machine


# How often machines are started again, in a whole run of the tests, before one
# that does not start counts as a failure: QEMU is that bad, and no worse.
RESTARTS = threading.Semaphore(2)


class VmError(Exception):
    """The machine crashed, hung or did not start."""


class CommandError(Exception):
    """A command in the machine failed."""


def boot_command(machine: Machine, kernel: Path, files: Path, append: list[str] = ()) -> list[str]:
    """QEMU and its arguments, but for where console and agent lead."""
    append = [*machine.kernel_arguments(), *append]
    if machine.host_files:
        append.append("physdma.host_files")
    return [QEMU, *machine.qemu_arguments(files),
            "-kernel", str(kernel / "arch/x86/boot/bzImage"),
            "-initrd", str(initramfs(kernel)),
            "-append", " ".join(append)]


class Vm:
    """A machine that runs from entering the context to leaving it."""

    def __init__(self, machine: Machine, name: str, kernel: Path = BUILD / "kernel",
                 limit: float = 240):
        self.machine = machine
        self.kernel = kernel
        self.files = REPORTS / name
        # A kernel full of checks is several times slower.
        self._patience = 1 if kernel.name == "kernel" else 5
        self.limit = limit * self._patience
        self.console = self.files / "console.log"
        self.trace = self.files / "trace.log"
        self.expected: list[str] = []   # patterns of reports that are meant to be there
        self.leaked: list[str] = []     # what kmemleak had found when it was powered off
        self._hung = False
        self._process = None
        self._agent = None
        self._sockets = None

    def __enter__(self):
        shutil.rmtree(self.files, ignore_errors=True)
        self.files.mkdir(parents=True)
        for attempt in itertools.count(1):
            try:
                self._start()
                return self
            except VmError as error:
                if not self._emulator_failed() or not RESTARTS.acquire(blocking=False):
                    raise
                print(f"note    {self.files.relative_to(REPORTS)}: started again, as the emulator "
                      f"failed: {error}", flush=True)
                self.console.rename(self.files / f"console-{attempt}.log")

    def _start(self):
        self.console.write_bytes(b"")
        self._hung = False
        self._agent = self._qmp = None
        self._sockets = tempfile.TemporaryDirectory(prefix="physdma-")
        agent, self._qmp_path = (Path(self._sockets.name) / name for name in ("agent", "qmp"))
        command = [
            # Ends the machine even if nobody else does.
            "setpriv", "--pdeathsig", "TERM", "timeout", "--kill-after=5", str(int(self.limit) + 5),
            *boot_command(self.machine, self.kernel, self.files),
            "-serial", f"file:{self.console}",
            "-qmp", f"unix:{self._qmp_path},server=on,wait=off",
            "-device", "virtio-serial-pci",
            "-chardev", f"socket,id=agent,path={agent},server=on,wait=off",
            "-device", "virtserialport,chardev=agent",
        ]
        (self.files / "command").write_text(shlex.join(command) + "\n")
        self._end = time.monotonic() + self.limit
        with open(self.files / "qemu.log", "wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log,
                                             stderr=subprocess.STDOUT)
        try:
            self._agent = Line(self._connect(agent), self)
            try:
                self._agent.line(min(self._end, time.monotonic() + 60 * self._patience))
            except TimeoutError:
                self._hung = True
                self._show_processors()
                raise VmError("the machine did not start in time") from None
        except BaseException:
            self._stop()
            raise

    def _emulator_failed(self) -> bool:
        """Whether it was not the kernel that kept the machine from starting:
        QEMU crashed, or a processor sleeps for good. QEMU does either once in
        some hundred starts of several processors without hardware virtualisation."""
        crashed = self._process.returncode in (-signal.SIGABRT, 128 + signal.SIGABRT)
        stalls = re.compile(r"rcu: INFO: .*stall")
        return crashed or self._hung and not klog.reports(self.log(), [stalls.pattern])

    def emulator_lost(self) -> bool:
        """Whether QEMU lost what a processor wrote, which it does now and then
        on a busy host: it sends an access to another device than the one that
        is there. The IOMMU got one to registers that it does not have. Or the
        end of an interrupt is what was lost: a processor is asleep, and does
        not take the interrupts that it waits for, as it is said to handle one.
        Or the kernel misses the timer of a processor, which is asleep, and
        whose timer is not set."""
        said, shown = (path.read_text(errors="replace") if path.exists() else ""
                       for path in (self.files / "qemu.log", self.files / "processors.log"))
        if re.search(r"vtd_mem_(read|write): MMIO over range", said):
            return True
        late = re.findall(r"rcu: \tPossible timer handling issue on cpu=(\d+)", self.log())
        halted = re.findall(r"^RIP=.* HLT=(\d)", shown, re.M)
        handled = re.findall(r"^ISR\s+(\S+)", shown, re.M)
        if ("1", True) in zip(halted, (vector.isdigit() for vector in handled)):
            return True
        counts = re.findall(r"one-shot.*\n^Timer.* current_count = (\d+)", shown, re.M)
        if not late:
            return False
        cpu = int(late[-1])
        return halted[cpu:cpu + 1] == ["1"] and counts[cpu:cpu + 1] == ["0"]

    def __exit__(self, *_):
        self._stop()

    def _connect(self, path: Path) -> socket.socket:
        while time.monotonic() < self._end:
            if self._process.poll() is not None:
                raise VmError(f"QEMU ended: {(self.files / 'qemu.log').read_text().strip()}")
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(path))
                return connection
            except (FileNotFoundError, ConnectionRefusedError):
                connection.close()
                time.sleep(0.02)
        raise VmError("QEMU did not start in time")

    def _stop(self):
        if self._process.poll() is None:
            # timeout passes it on to QEMU, which ends and flushes its files.
            self._process.send_signal(signal.SIGTERM)
        self._process.wait()
        if self._agent:
            self._agent.close()
        self._sockets.cleanup()

    def sh(self, command: str, limit: float = 120, check: bool = True) -> str:
        """Runs a shell command in the machine, returns its output. Raises
        CommandError when it fails, VmError when it or the machine hangs."""
        start = time.monotonic()
        end = min(self._end, start + limit * self._patience)
        self._agent.send(base64.b64encode(command.encode()) + b"\n")
        try:
            code, size = self._agent.line(end).split()
            output = self._agent.bytes(int(size), end).decode(errors="replace")
        except TimeoutError:
            self._hung = True
            self._show_blocked()
            raise VmError(f"no end after {time.monotonic() - start:.0f} s: {command}") from None
        if check and code != "0":
            raise CommandError(f"exit code {code}: {command}\n{output}".rstrip())
        return output

    def load(self, module: str, parameters: str = "", limit: float = 120) -> None:
        """Loads a module, after those that it depends on."""
        files = {file.stem.replace("-", "_"): file for file in modules(self.kernel)}
        name = module.replace("-", "_")
        if name not in files:
            raise CommandError(f"there is no module {module}")
        depends = subprocess.run(["modinfo", "-F", "depends", files[name]], check=True,
                                 capture_output=True, text=True).stdout.strip()
        for other in filter(None, depends.split(",")):
            self.load(other)
        self.sh(f"[ -d /sys/module/{name} ] || insmod /modules/{files[name].name} {parameters}",
                limit)

    def unload(self, *names: str) -> None:
        """Unloads modules, in this order."""
        for name in names:
            self.sh(f"rmmod {name}")

    def log(self) -> str:
        """The console up to now."""
        return self.console.read_text(errors="replace").replace("\r", "")

    def wait_for(self, pattern: str, limit: float = 60, after: int = 0) -> re.Match:
        """Waits until the console shows `pattern`, at offset `after` or later."""
        end = min(self._end, time.monotonic() + limit * self._patience)
        while time.monotonic() < end:
            if found := re.search(pattern, self.log()[after:], re.M):
                return found
            if self._process.poll() is not None:
                break
            time.sleep(0.05)
        raise VmError(f"the console never showed {pattern!r}")

    def qmp(self, command: str, **arguments) -> dict:
        """A command to QEMU itself: qmp("device_del", id="nvme0")."""
        if not self._qmp:
            self._qmp = Line(self._connect(self._qmp_path), self)
            self._qmp.line(self._end)
            self._qmp_send("qmp_capabilities", {})
        return self._qmp_send(command, arguments)

    def _qmp_send(self, command: str, arguments: dict) -> dict:
        message = {"execute": command, "arguments": arguments}
        self._qmp.send(json.dumps(message).encode() + b"\n")
        while True:
            answer = json.loads(self._qmp.line(self._end))
            if "error" in answer:
                raise VmError(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def monitor(self, command: str) -> str:
        """A command to QEMU's human monitor."""
        return self.qmp("human-monitor-command", **{"command-line": command})

    def power_off(self) -> None:
        """Ends the machine in good order: the disks' images are complete."""
        self.leaked = self.leaks()
        self.sh("sync")
        self.qmp("quit")
        self._process.wait(timeout=30)

    def remove_images(self) -> None:
        """Removes the disks and memories of a machine that has ended."""
        for pattern in ("*.img", "*.pmr", "*.mem"):
            for file in self.files.glob(pattern):
                file.unlink()

    def alive(self) -> bool:
        """Whether the machine runs and answers."""
        return self._process.poll() is None and not self._hung

    def _show_blocked(self) -> None:
        """Has the kernel list its blocked tasks on the console."""
        self._end += 5
        try:
            self.monitor("sendkey alt-sysrq-w")
            time.sleep(1)
        except (VmError, TimeoutError):
            pass
        self._show_processors()

    def _show_processors(self) -> None:
        """Has QEMU write down what its processors do, in processors.log."""
        self._end = max(self._end, time.monotonic() + 5)
        try:
            shown = [self.monitor(command) for command in (
                "info registers -a", *(f"info lapic {cpu}" for cpu in range(self.machine.cpus)))]
        except (VmError, TimeoutError) as error:
            shown = [f"QEMU does not answer: {error}"]
        (self.files / "processors.log").write_text("\n".join(shown))

    def leaks(self) -> list[str]:
        """What kmemleak found, in a kernel that has it."""
        # Only memory older than five seconds is looked at, and twice.
        found = self.sh("file=/sys/kernel/debug/kmemleak; [ -e $file ] || exit 0; sleep 6; "
                        "echo scan > $file; sleep 6; echo scan > $file; cat $file", check=False)
        return found.splitlines()

    def reports(self) -> list[str]:
        """Lines of the console that are failures."""
        return klog.reports(self.log(), self.expected)


class Line:
    """A socket that speaks in lines."""

    def __init__(self, connection: socket.socket, vm: Vm):
        self._socket = connection
        self._vm = vm
        self._buffer = b""

    def close(self) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError:
            raise VmError(self._why()) from None

    def line(self, end: float) -> str:
        while b"\n" not in self._buffer:
            self._receive(end)
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line.decode(errors="replace").strip()

    def bytes(self, size: int, end: float) -> bytes:
        while len(self._buffer) < size:
            self._receive(end)
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def _receive(self, end: float) -> None:
        self._socket.settimeout(max(end - time.monotonic(), 0.001))
        try:
            data = self._socket.recv(1 << 16)
        except ConnectionError:
            data = b""
        if not data:
            raise VmError(self._why())
        self._buffer += data

    def _why(self) -> str:
        return "; ".join(["the machine ended", *self._vm.reports()[:3]])
