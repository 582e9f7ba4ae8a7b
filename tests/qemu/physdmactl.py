# SPDX-License-Identifier: GPL-2.0
"""An operator's questions, asked in a machine with physdmactl alone: whose memory
is there, is it really peer-to-peer, what is going on, and why is it refused.

The modes are the machines: SSDs and the memory below one switch, and on a host
bridge that is not on the kernel's list.
"""

import json
import re
import time

from harness import ROOT
from harness.topology import Ivshmem, Machine, Ssd

INTEL = "Skylake-Client-v1"
MACHINES = {
    "switch": dict(switch=True, iommu="off", cpu=INTEL),
    "refused": dict(iommu="off", cpu=INTEL),
}
MODES = list(MACHINES)
LIMIT = 180

IO = "/sys/kernel/debug/physdma_bios/io"
INSTANCE = "/sys/kernel/tracing/instances/physdmactl"
WATCHED = f"for try in $(seq 100); do grep -qs 1 {INSTANCE}/events/physdma/enable && break; " \
    "sleep 0.1; done"
MB = 1 << 20


def machine(mode):
    return Machine(host_files=True, devices=[Ssd(), Ssd(), Ivshmem(size_mb=4)], **MACHINES[mode])


class Session:
    """The machine with all its drivers, and what is where."""

    def __init__(self, t):
        self.t = t
        a, b, ivshmem = t.machine.devices
        for module in "physdma", "physdma_ivshmem", "physdma_bios", "rnvme":
            t.vm.load(module)
        self.disks = [t.disk(ssd) for ssd in (a, b)]
        self.clients = [t.machine.address(ssd) for ssd in (a, b)]
        self.provider = t.machine.address(ivshmem)
        _, listed = self.ask("providers")
        # The memory of the SSDs is none.
        assert [row["provider"] for row in listed] == [self.provider], listed
        self.first = int(listed[0]["first"], 0)
        assert listed[0]["bytes"] == 4 * MB and listed[0]["state"] == "open", listed
        assert set(listed[0]) == documented("providers"), listed

    def ask(self, words):
        """What physdmactl says to a program: its exit code, and what it says."""
        said = self.t.vm.sh(f"physdmactl --json {words}; echo $?")
        answer, code = said.strip().rsplit("\n", 1)
        return int(code), json.loads(answer)

    def tell(self, words):
        """What it says to a person."""
        return self.t.vm.sh(f"physdmactl {words}", check=False)

    def fails(self, words, why):
        """Fails unless it says that it has no answer, and why."""
        said, code = self.tell(f"{words} 2>&1; echo $?").strip().rsplit("\n", 1)
        assert code == "2" and why in said and "Traceback" not in said, (words, code, said)

    def read(self):
        """Has the first SSD read a page into the memory."""
        return self.t.vm.sh(f"echo read {self.disks[0]} 0 {self.first:#x}:4096 | "
                            f"dd of={IO} status=none 2>&1", check=False)

    def watch(self, count, command):
        """The events while `command` is run."""
        self.t.vm.sh(f"physdmactl --json watch -n {count} > /tmp/events 2> /tmp/error & {WATCHED}; "
                     f"[ -e {INSTANCE} ] || {{ cat /tmp/error; exit 1; }}")
        command()
        for _ in range(100):
            lines = self.t.vm.sh("cat /tmp/events; cat /tmp/error >&2").splitlines()
            if len(lines) >= count:
                break
            time.sleep(0.1)
        events = [json.loads(line) for line in lines]
        assert len(events) == count, events
        self.gone()
        for event in events:
            assert set(event) == documented(event["event"]), event
        return events

    def gone(self):
        """Nobody watches any more."""
        self.t.vm.sh(f"for try in $(seq 100); do [ ! -e {INSTANCE} ] && exit; sleep 0.1; done; exit 1")


def documented(what):
    """The keys that the operator's page says JSON has."""
    page = (ROOT / "Documentation/physdma/operator.rst").read_text().split("For programs\n")[1]
    row = re.search(rf"^[a-z:, ]*\b{what}\b[a-z, ]*(``.*\n(?: .*\n)*)", page, re.M)
    return set(re.findall(r"``(\w+)``", row[1]))


def run(t):
    with t.case("whose memory is there?"):
        s = Session(t)
    with t.case("tables are for people"):
        said = s.tell("providers")
        assert re.search(rf"{s.provider} +2 .* 4 MiB +no +open ", said), said
        said = s.tell("routes")
        assert said.count(s.provider) == 2 and "in flight" in said, said
        assert "EINVAL" in s.tell("errors")
    with t.case("what cannot be answered"):
        s.fails(f"why 0000:00:00.0 {s.provider}", "is no client")
        s.fails("nonsense", "usage: physdmactl")
        s.fails("top -n 0", "invalid count value")
        for words in "routes", "errors":
            s.fails(f"--debugfs /nowhere {words}", "is physdma.ko loaded")
        s.fails("--debugfs /proc/version errors", "Not a directory")
        s.fails("--tracefs /nowhere watch", "mount tracefs")
        s.fails("--tracefs /proc/version watch", "Not a directory")
        t.vm.sh(f"mkdir {INSTANCE}")
        s.fails("watch", "another physdmactl is watching")
        t.vm.sh(f"rmdir {INSTANCE}")
    with t.case("whoever watches goes"):
        for number in "TERM", "HUP", "INT":
            # What a shell has in the background ignores SIGINT.
            t.vm.sh(f"env --default-signal=INT physdmactl watch & {WATCHED}; kill -{number} $!; "
                    "wait $!")
            s.gone()
    if t.mode == "refused":
        refused(t, s)
    else:
        peer_to_peer(t, s)
        happens(t, s)
        counters(t, s)
    with t.case("unload"):
        t.vm.unload("rnvme", "physdma_bios", "physdma_ivshmem", "physdma")


def peer_to_peer(t, s):
    with t.case("is it really peer-to-peer?"):
        code, (row,) = s.ask(f"why {s.clients[0]} {s.provider}")
        assert code == 0 and row["route"] == "bus address" and row["mapped"] == 0, row
        assert set(row) == documented("routes"), row
        assert "directly, by the switch" in s.tell(f"why {s.clients[0]} {s.provider}/2")
        s.read()
        _, (row,) = s.ask(f"why {s.clients[0]} {s.provider}")
        assert row["mapped"] == 1 and row["in_flight"] == 0, row
    with t.case("what is in use?"):
        t.vm.sh(f"while echo copy {s.disks[0]} {s.disks[1]} {MB} {s.first:#x}:{MB} 65536 1 | "
                f"dd of={IO} bs=4k status=none; do :; done > /dev/null 2>&1 & echo $! > /tmp/pid")
        _, listed = s.ask("top -n 1 -d 1")
        t.vm.sh("kill $(cat /tmp/pid); while pgrep -x dd > /dev/null; do sleep 0.1; done")
        busy = {row["client"]: row["maps_per_s"] for row in listed}
        assert set(busy) == set(s.clients) and min(busy.values()) > 10, listed
        assert all(set(row) - documented("routes") == documented("top") for row in listed), listed
        print(f"note    {t.suite}: physdmactl top saw {busy} requests a second")


def happens(t, s):
    with t.case("perf and bpftrace can parse the events"):
        # It takes the format to end with the second quote.
        formats = t.vm.sh("cat /sys/kernel/tracing/events/physdma/physdma_*/format")
        lines = [line for line in formats.splitlines() if line.startswith("print fmt:")]
        assert len(lines) == 6 and all(re.match(r'print fmt: "[^"]*", ', line)
                                       for line in lines), lines
        # And bpftrace knows no types of the kernel's own without BTF.
        assert not re.search(r"field:([us](8|16|32|64)|bool) ", formats), formats
    with t.case("what happens?"):
        def all_of_it():
            s.read()
            t.vm.sh(f"echo {s.provider} > /sys/bus/pci/drivers/physdma_ivshmem/unbind; "
                    f"echo {s.provider} > /sys/bus/pci/drivers/physdma_ivshmem/bind")

        mapped, unmapped, *ranges = s.watch(5, all_of_it)
        assert (mapped["event"], mapped["client"], mapped["bytes"], mapped["dir"],
                mapped["path"]) == ("map", s.clients[0], 4096, "from", "bus"), mapped
        assert unmapped["event"] == "unmap" and unmapped["mapping"] == mapped["mapping"], unmapped
        assert [event["event"] for event in ranges] == ["revoke", "revoked", "register"], ranges
        for event in ranges:
            assert (event["provider"], event["bar"], int(event["first"], 0), event["pages"]) == \
                (s.provider, 2, s.first, False), event
        times = [event["time"] for event in (mapped, unmapped, *ranges)]
        assert times == sorted(times), times
    with t.case("RAM, too"):
        read = f"dd if={s.disks[1]} of=/dev/null bs=4k count=1 iflag=direct status=none"
        mapped, unmapped = s.watch(2, lambda: t.vm.sh(read))
        assert (mapped["client"], mapped["path"]) == (s.clients[1], "single"), mapped
        assert unmapped["mapping"] == mapped["mapping"], unmapped


def counters(t, s):
    """Each number of the three files, while it is not zero."""
    def provider():
        _, (row,) = s.ask("providers")
        line, = t.vm.sh("sed 1d /sys/kernel/debug/physdma/providers").splitlines()
        words = line.split(maxsplit=9)
        seen = row["in_flight"], row["cpu_maps"], row["bios"]
        assert tuple(map(int, words[6:9])) == seen, (line, row)
        assert words[9:] == ([", ".join(row["holders"])] if row["holders"] else []), (line, row)
        return *seen, row["holders"]

    with t.case("who has the memory?"):
        assert provider() == (0, 0, 0, []), provider()
        t.vm.load("physdma_refusals", f"kept={s.first}")
        assert provider() == (1, 1, 0, ["physdma_refusals"]), provider()
        t.vm.unload("physdma_refusals")
        assert provider() == (0, 0, 0, []), provider()
        # The disk answers the second one in an hour.
        limits = {key: 0 for key in ("bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr")}
        t.vm.qmp("block_set_io_throttle", device="nvme0n1", bps=1, **limits)
        s.read()
        t.vm.sh(f"{{ echo read {s.disks[0]} 0 {s.first:#x}:4096 | dd of={IO} status=none; "
                "echo $? > /tmp/ended; } & sleep 0.5")
        assert provider() == (1, 0, 1, []), "nothing is withheld"
        _, (row,) = s.ask(f"why {s.clients[0]} {s.provider}")
        assert row["in_flight"] == 1, row
        # Nor does its driver get it back.
        t.vm.sh(f"echo {s.provider} > /sys/bus/pci/drivers/physdma_ivshmem/unbind & "
                "for try in $(seq 100); do grep -q revoked /sys/kernel/debug/physdma/providers && "
                "exit; sleep 0.1; done; exit 1")
        said = s.tell(f"why {s.clients[0]} {s.provider}")
        assert re.search(rf"the provider is gone\n.* 0 times so far\n +mapped {row['mapped']} times "
                         "before, 1 in flight still", said), said
        t.vm.qmp("block_set_io_throttle", device="nvme0n1", bps=0, **limits)
        t.vm.sh("for try in $(seq 100); do [ -s /tmp/ended ] && exit; sleep 0.1; done; exit 1")
        t.vm.sh("for try in $(seq 100); do echo "
                f"{s.provider} > /sys/bus/pci/drivers/physdma_ivshmem/bind && exit; sleep 0.1; done; "
                "exit 1")
        assert provider() == (0, 0, 0, []), provider()


def refused(t, s):
    reason = "host bridge 8086:29c0 is not on the kernel's list: put both devices below one " \
        "PCIe switch"
    with t.case("why is it refused?"):
        code, (row,) = s.ask(f"why {s.clients[0]} {s.provider}")
        assert code == 1 and row["route"] == "refused" and row["detail"] == reason, row
        said = s.tell(f"why {s.clients[0].removeprefix('0000:')} {s.provider}/2")
        assert reason in said and "refused 0 times" in said, said
        event, = s.watch(1, s.read)
        assert (event["event"], event["client"], event["provider"], event["reason"]) == \
            ("refuse", s.clients[0], s.provider, reason), event
        assert "refused 1 times" in s.tell(f"why {s.clients[0]} {s.provider}")
        _, errors = s.ask("errors")
        assert all(set(row) == documented("errors") for row in errors), errors
        assert {row["errno"]: row["times"] for row in errors}["EINVAL"] == 1, errors
