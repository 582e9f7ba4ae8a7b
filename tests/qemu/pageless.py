# SPDX-License-Identifier: GPL-2.0
"""Programs have SSDs read and write memory that has no struct page: from SSD A
to SSD B by way of ivshmem, by ioctl and by io_uring.

The modes are the machines: below one switch the SSDs are told bus addresses;
behind root ports and a strict IOMMU they reach the memory through the host
bridge. The host compares the images and the file behind the memory, and QEMU's
trace says that nothing went to RAM. Then all that is forbidden, and all that
can go away in the midst of it.
"""

import os
import re
import time

from harness.operator import failures, rows
from harness.topology import Ivshmem, Machine, Ssd

MACHINES = {
    "switch": dict(iommu="off", switch=True, cpu="Skylake-Client-v1"),
    "strict": dict(iommu="strict"),
    # The host bridge is not on the kernel's list.
    "refused": dict(iommu="off", cpu="Skylake-Client-v1"),
}
MODES = list(MACHINES)

# How much is copied each way, and how many random inputs there are.
SIZE_MB = int(os.environ.get("SIZE_MB", "4"))
INPUTS = int(os.environ.get("INPUTS", "2000"))
LIMIT = 180 + SIZE_MB // 2 + INPUTS // 200

# Only the demonstration needs programs of the host.
HOST_FILES = False

MB = 1 << 20
BLOCK = 512
CHUNK = 512 << 10  # what a command of QEMU's SSDs moves
MEMORY_MB = int(os.environ.get("MEMORY_MB", "16"))
AT = MEMORY_MB - 16 << 20  # Copies go by way of its end.
DEBUGFS = "/sys/kernel/debug"
ROUTES = f"{DEBUGFS}/physdma/routes"
DEVICES = "/sys/bus/pci/devices"
# Nothing is left that a device answers: `setpci COMMAND=0`.
TURN_OFF = "printf '\\0\\0' | dd of={device}/config bs=1 seek=4 conv=notrunc 2>/dev/null"


def machine(mode):
    disk_mb = max(64, SIZE_MB * 2 + 32)
    return Machine(devices=[Ssd(size_mb=disk_mb), Ssd(size_mb=disk_mb), Ivshmem(size_mb=MEMORY_MB)],
                   trace=["pci_nvme_map_addr", "vtd_iotlb_page_hit", "vtd_iotlb_page_update",
                          "vtd_dmar_fault"],
                   host_files=HOST_FILES, **MACHINES[mode])


def content(path, at, size):
    with open(path, "rb") as file:
        file.seek(at)
        return file.read(size)


def same(first, at, second, second_at, size):
    """Fails unless two files have the same there."""
    for done in range(0, size, MB):
        part = min(MB, size - done)
        data = content(first, at + done, part)
        assert len(set(data)) > 100, "there were no data"
        assert data == content(second, second_at + done, part), f"they differ in MiB {done // MB}"


class Session:
    """The machine with all its drivers, and what is where."""

    def __init__(self, t):
        self.t = t
        self.a, self.b, self.ivshmem = t.machine.devices
        t.vm.load("physdma")
        t.vm.load("physdma_ivshmem")
        # What is held up here is not lost: nothing is aborted, however slow the machine is.
        t.vm.load("rnvme", "io_timeout=3600")
        t.load_driver()
        self.provider = t.machine.address(self.ivshmem)
        self.find()
        line = t.vm.sh(f"sed -n 3p {DEVICES}/{self.provider}/resource")
        first, last = (int(word, 0) for word in line.split()[:2])
        self.range = range(first, last + 1)

    def find(self):
        self.disks = [self.t.disk(ssd) for ssd in (self.a, self.b)]
        self.file = self.disks[0].removesuffix("n1")

    def buf(self, **fields):
        """The command that registers a part of the memory."""
        fields = {"kind": 1, "bus": int(self.provider.split(":")[1], 16), "bar": 2, "offset": 0,
                  "length": MB, **fields}
        return "buf," + ",".join(f"{name}={value}" for name, value in fields.items())

    def attempt(self, *commands, mode="rw", after="", limit=60):
        """What comes of each command: a list of words."""
        said = self.t.vm.sh(f"rnvme_try {mode} {self.file} {' '.join(commands)}{after}",
                            limit=limit)
        return [line.split()[1] for line in said.splitlines()]

    def throttle(self, bps):
        """Lets A's disk move so many bytes a second; 0 is as many as it can."""
        limits = {key: 0 for key in ("bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr")}
        self.t.vm.qmp("block_set_io_throttle", device="nvme0n1", bps=bps, **limits)

    def in_flight(self, gone=False):
        """How many buffers A has of the memory, those included of which only I/O is left."""
        client = self.t.machine.address(self.a)
        line = re.search(rf"{self.provider} +2 {client} .*", self.t.vm.sh(f"cat {ROUTES}"))
        # Where the SSD has gone there is no line.
        assert line or gone, "it is no client"
        return int(line[0].split()[5]) if line else 0

    def pinned(self):
        """How many pages are pinned in all the machine."""
        # What the processors have counted is added up once in a while, or when asked for.
        said = self.t.vm.sh("echo 1 > /proc/sys/vm/stat_refresh; cat /proc/vmstat")
        count = dict(line.split() for line in said.splitlines())
        return int(count["nr_foll_pin_acquired"]) - int(count["nr_foll_pin_released"])


def io(op="read", command="io", **fields):
    fields = {"id": 1, "nsid": 1, "offset": 0, "lba": 0, "length": 4096,
              "op": {"read": 1, "write": 2}[op], **fields}
    return f"{command}," + ",".join(f"{name}={value}" for name, value in fields.items())


def told(t, begin):
    """Where QEMU's SSDs were told since `begin` that memory is: physical
    addresses. Behind an IOMMU, what became of the addresses that they were told."""
    trace = t.vm.trace.read_text(errors="replace")[begin:]
    pieces = [(int(address, 16), int(length)) for address, length in
              re.findall(r"pci_nvme_map_addr addr 0x([0-9a-f]+) len (\d+)", trace)]
    assert pieces, "QEMU has traced nothing"
    if t.mode != "strict":
        return pieces
    pages = {page for address, length in pieces
             for page in range(address >> 12, (address + length - 1 >> 12) + 1)}
    # Once in each lookup of QEMU's.
    return [(int(physical, 16) & 0xffffffffff000, 0) for address, physical in
            re.findall(r"vtd_iotlb_page_\w+ .*iova 0x([0-9a-f]+) slpte 0x([0-9a-f]+)", trace)
            if int(address, 16) >> 12 in pages]


def zone_device(t):
    """The pages that the kernel has for device memory."""
    zones = re.findall(r"zone +Device.*?present +(\d+)", t.vm.sh("cat /proc/zoneinfo"), re.S)
    return sum(int(count) for count in zones)


def run(t):
    with t.case("load"):
        pages = zone_device(t)
        s = Session(t)
    if t.mode == "refused":
        return refused(t, s)
    copy(t, s, pages)
    forbidden(t, s)
    if t.mode == "strict":
        random_inputs(t, s)
    gone(t, s)
    with t.case("unload"):
        t.unload_driver()
        t.vm.unload("physdma_ivshmem", "physdma")
        assert s.pinned() == 0
        faults = re.findall("vtd_dmar_fault.*", t.vm.trace.read_text(errors="replace"))
        assert not faults, faults


def demonstrate(t):
    """What `make run` shows."""
    shown = []
    with t.case("load"):
        s = Session(t)
    with t.case("data"):
        write_data(s)
    for number, option in enumerate(("", "-u")):
        with t.case(f"by {'io_uring' if option else 'ioctl'}, {SIZE_MB} MiB"):
            at = number * SIZE_MB * MB
            command = f"p2pcp -vq {option} -s {SIZE_MB}M {s.disks[0]} {s.provider}/2 " \
                f"{s.disks[1]}:{at >> 20}M"
            shown += [f"# {' '.join(command.split())}", *t.vm.sh(command).splitlines()]
            t.vm.sh("sync")
            same(s.a.images[0], 0, s.b.images[0], at, SIZE_MB * MB)
    with t.case("no struct page"):
        no_pages(t, s)
    with t.case("what an operator sees"):
        client = t.machine.address(s.a)
        for words in "providers", "routes", f"why {client} {s.provider}/2":
            said = t.vm.sh(f"physdmactl {words}").splitlines()
            shown += ["", f"# physdmactl {words}", *said]
        assert "by way of the root complex: not through RAM" in said[1], said
    t.conclusion = "\n".join(f"    {line}" for line in shown) + \
        "\n\nThe host's images are the same, and the memory has no struct page."


def write_data(s):
    with open(s.a.images[0], "r+b") as file:
        for _ in range(SIZE_MB):
            file.write(os.urandom(MB))


def no_pages(t, s):
    line = re.search(rf"{s.provider} +2 .*", t.vm.sh(f"cat {DEBUGFS}/physdma/providers"))[0]
    assert line.split()[4] == "no", line
    t.vm.sh(f"[ ! -e {DEVICES}/{s.provider}/p2pmem ]")


def refused(t, s):
    with t.case("why there is no route"):
        before = failures(t)["EINVAL"]
        said = t.vm.sh(f"p2pcp -s 1M {s.disks[0]} {s.provider}/2 {s.disks[1]} 2>&1", check=False)
        assert said.count("refused: host bridge 8086:29c0 is not on the kernel's list") == 2, said
        assert "has no way to that memory" in said, said
        assert s.attempt(s.buf()) == ["EHOSTUNREACH"]
        # An operator sees both attempts, though there was no request.
        assert sum(counts[2] for _, counts, _ in rows(t).values()) == 2, rows(t)
        assert failures(t)["EINVAL"] == before + 2, failures(t)
        assert t.vm.log().count(f"no DMA to memory of {s.provider}: host bridge 8086:29c0") == 1
        # The program's own memory is reached.
        assert s.attempt("user,length=4096", io(), io(command="cmd")) == ["1", "0", "0"]


def copy(t, s, pages):
    way = {"switch": "bus address", "strict": "host bridge"}[t.mode]
    size = SIZE_MB * MB
    with t.case("data"):
        write_data(s)
    for target, (how, option) in enumerate((("ioctl", ""), ("io_uring", "-u"))):
        with t.case(f"by {how}, {SIZE_MB} MiB"):
            begin = len(t.vm.trace.read_text(errors="replace"))
            at = target * size
            said = t.vm.sh(f"p2pcp {option} -s {size} {s.disks[0]} {s.provider}/2+{AT} "
                           f"{s.disks[1]}:{at} 2>/dev/null", limit=60 + SIZE_MB)
            assert len(re.findall(f"to BAR 2 of {s.provider}: {way}", said)) == 2, said
            assert f"copied {size} bytes by {how}" in said, said
            t.vm.sh("sync")
            same(s.a.images[0], 0, s.b.images[0], at, size)
            pieces = told(t, begin)
            outside = [piece for piece in pieces if piece[0] not in s.range]
            assert not outside, f"QEMU was told of other memory: {outside[:9]}"
            # Each command is looked up once at least.
            assert len(pieces) >= 2 * size // CHUNK, f"{len(pieces)} lookups"
            if t.mode != "strict":
                moved = sum(length for _, length in pieces)
                assert moved == 2 * size, f"{moved} bytes"
        with t.case(f"what {how} has left in the memory"):
            # In each part is what went by there last.
            for slot in range(8 if option else 1):
                left = content(s.ivshmem.memory, AT + slot * CHUNK, CHUNK)
                chunks = range(max(size - 16 * CHUNK, 0), size, CHUNK) if option else \
                    [size - CHUNK]
                assert any(left == content(s.a.images[0], chunk, CHUNK) for chunk in chunks), slot
    with t.case("no struct page"):
        no_pages(t, s)
        assert zone_device(t) == pages
    with t.case("verified by the program too"):
        said = t.vm.sh(f"p2pcp -quv -c 64K -d 32 -s 1M {s.disks[0]}:1M {s.provider}/2+4K,2M "
                       f"{s.disks[1]}:3M")
        assert "verified: 1048576 bytes are the same" in said, said
    with t.case("many at once"):
        for command in "io", "cmd":
            fields = {} if command == "io" else dict(times=200, step=4096)
            assert s.attempt(s.buf(), io(command=command, **fields)) == ["1", "0"]
        same(s.a.images[0], 0, s.ivshmem.memory, 0, 200 * 4096)
    with t.case("longer than a command"):
        # io_uring must not wait for tags: a thread of the kernel's does.
        length = 3 * MB
        for number, command in enumerate(("io", "cmd"), 1):
            at = number * 4 * MB
            assert s.attempt(s.buf(offset=at, length=4 * MB),
                             io(command=command, length=length)) == ["1", "0"]
            same(s.a.images[0], 0, s.ivshmem.memory, at, length)
    with t.case("memory of the program"):
        lba = (SIZE_MB * MB + 8 * MB) // BLOCK
        before = s.pinned()
        assert s.attempt(f"user,length={MB + 5000},fill=7", io("write", lba=lba, length=MB,
                                                              offset=4096),
                         io(command="cmd", length=MB, offset=512), "byte,offset=511",
                         "byte,offset=4000")[:4] == ["1", "0", "0", "7"]
        assert content(s.a.images[0], lba * BLOCK, MB) == b"\7" * MB
        wait(t, lambda: s.pinned() == before, "memory is pinned")
    with t.case("more than may be locked"):
        # Who may lock what he likes needs no limit.
        assert s.attempt(f"user,length={MB}", "limit,nr=65536", f"user,length={MB}",
                         "user,length=4096", "unbuf,id=1") == ["1", "0", "ENOMEM", "ENOMEM", "0"]
        # It has been let go of when it is unregistered.
        again = ["user,length=40960", "unbuf,id=1"] * 20
        assert s.attempt("limit,nr=65536", *again) == ["0"] + ["1", "0"] * 20


def forbidden(t, s):
    last = s.a.size_mb * MB // BLOCK
    both = ("io", "cmd")

    def check(expected, *commands, other_user="EPERM", **how):
        # Then once more by another user, who was handed the open file.
        said, _, other = s.attempt(*commands, "drop", commands[-1], **how)[-3:]
        assert said == expected, f"{commands[-1]}: {said}, not {expected}"
        assert other == other_user, f"{commands[-1]} of another user: {other}"

    with t.case("what cannot be registered"):
        for expected, fields in (
                ("EINVAL", dict(kind=0)), ("EINVAL", dict(kind=3)), ("EINVAL", dict(flags=1)),
                ("EINVAL", dict(reserved1=1)), ("EINVAL", dict(reserved2=1)),
                ("EINVAL", dict(reserved3=1)), ("EINVAL", dict(id=1)), ("EINVAL", dict(length=0)),
                ("EINVAL", dict(offset=1 << 63, length=1 << 63)),
                ("ENXIO", dict(bar=0)), ("ENXIO", dict(bar=255)), ("ENXIO", dict(bus=0)),
                ("ENXIO", dict(domain=1)), ("ENXIO", dict(devfn=1)),
                ("ENXIO", dict(length=MEMORY_MB * MB + 1)),
                ("ENXIO", dict(offset=MEMORY_MB * MB, length=1)),
                ("EINVAL", dict(kind=2)), ("EINVAL", dict(kind=2, bus=0)),
                ("EFAULT", dict(kind=2, bus=0, bar=0, offset=4096)),
                ("EFAULT", dict(kind=2, bus=0, bar=0, offset=1 << 62)),
                ("EINVAL", dict(kind=2, bus=0, bar=0, offset=4096, length=(1 << 30) + 1))):
            check(expected, s.buf(**fields))
        check("ENOSPC", *[s.buf()] * 1025)
    for command in both:
        with t.case(f"what cannot be moved: {command}"):
            for expected, fields in (
                    ("ENOENT", dict(id=2)), ("ENOENT", dict(id=0)), ("ENOENT", dict(id=-1)),
                    ("ENXIO", dict(nsid=2)), ("ENXIO", dict(nsid=0)), ("EINVAL", dict(op=0)),
                    ("EINVAL", dict(op=3)), ("EINVAL", dict(flags=1)), ("EINVAL", dict(reserved=1)),
                    ("EINVAL", dict(length=0)), ("EINVAL", dict(length=513)),
                    ("EINVAL", dict(length=(16 << 20) + BLOCK)), ("EINVAL", dict(offset=2)),
                    ("ERANGE", dict(offset=MB - 4092)), ("ERANGE", dict(offset=-4096)),
                    ("ENOSPC", dict(lba=last)), ("ENOSPC", dict(lba=last - 7)),
                    ("ENOSPC", dict(lba=-1)), ("ENOSPC", dict(lba=(1 << 64) - 8))):
                op = fields.pop("op", None)
                one = io(command=command, **fields)
                check(expected, s.buf(), one if op is None else one.replace("op=1", f"op={op}"))
            check("ENOENT", s.buf(), "unbuf,id=1", io(command=command))
    with t.case("what is no command"):
        check("ENOTTY", "ioctl,nr=0x4e41")
        check("EFAULT", s.buf(), "bad")
        check("EINVAL", s.buf(), "unbuf,id=1,reserved=1")
        check("ENOENT", "unbuf,id=1")
        check("EOPNOTSUPP", s.buf(), io(command="small"))
        check("EOPNOTSUPP", s.buf(), io(command="cmd", cmd_op=7))
    with t.case("how the file was opened"):
        for command in both:
            for mode, op in ("r", "write"), ("w", "read"):
                check("EBADF", s.buf(), io(op, command=command), mode=mode)
            for mode, op in ("r", "read"), ("w", "write"):
                check("0", s.buf(), io(op, command=command), mode=mode)
    with t.case("another file's buffer"):
        check("ENOENT", s.buf(), "open", io())
    with t.case("another user, with the open file"):
        for command in both:
            check("EPERM", s.buf(), "drop", io(command=command))
        check("EPERM", "drop", s.buf())
        check("EPERM", "drop", "user,length=4096")
        check("EPERM", s.buf(), "drop", "unbuf,id=1")
        check("EPERM", "drop", "ioctl,nr=0x4e41")
        # Not even those who may write to the node.
        t.vm.sh(f"chmod 666 {s.file}")
        check("EPERM", "drop", "open")
        t.vm.sh(f"chmod 600 {s.file}")
        check("EACCES", "drop", "open", other_user="EACCES")
    with t.case("not to an SSD that is in use"):
        said = t.vm.sh(f"p2pcp -s 1M {s.disks[0]} {s.provider}/2 /tmp/file 2>&1; "
                       f"touch /tmp/file; p2pcp -s 1M /tmp/file {s.provider}/2 {s.disks[1]} 2>&1",
                       check=False)
        assert "No such file" in said and "not a disk" in said, said


def random_inputs(t, s):
    with t.case(f"random inputs, {INPUTS} times"):
        assert s.attempt(f"fuzz,times={INPUTS},seed=4711," + s.buf().removeprefix("buf,"),
                         limit=60 + INPUTS // 100)[-1] == "1"
        wait(t, lambda: s.in_flight() == 0, "the memory is mapped")


def wait(t, condition, what):
    for _ in range(200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(what)


def gone(t, s):
    address = t.machine.address(s.a)
    driver = "/sys/bus/pci/drivers/rnvme"

    def begin(*commands):
        """Starts a program that has two commands in flight, which do not end."""
        s.throttle(1)
        # The first one still passes, and the next ones wait for an hour.
        t.vm.sh(f"rm -f /tmp/said; {{ rnvme_try rw {s.file} {s.buf()} user,length={MB} {io()} "
                f"{io(command='start', times=2, step=4096)} "
                f"{io(command='start', times=2, step=4096, id=2)} "
                f"{' '.join(commands)} > /tmp/said 2>&1; echo over >> /tmp/said; }} & echo $!")
        wait(t, lambda: t.vm.sh("grep -c start /tmp/said", check=False).strip() == "2",
             "nothing began")
        assert s.in_flight() == 1

    def said():
        return t.vm.sh("cat /tmp/said").split("\n")[5:]

    def over():
        wait(t, lambda: "over" in t.vm.sh("cat /tmp/said"), "the program does not end")
        return said()

    def nothing_left(pinned, gone=False):
        wait(t, lambda: s.in_flight(gone) == 0, "the memory is mapped")
        wait(t, lambda: s.pinned() == pinned, "memory is pinned")

    pinned = s.pinned()
    with t.case("a killed process"):
        begin("sleep,ms=100000")
        assert s.pinned() == pinned + MB // 4096
        t.vm.sh("killall -9 rnvme_try")
        time.sleep(0.2)
        # The SSD has the address still: the memory stays until it is done.
        assert s.in_flight() == 1
        s.throttle(0)
        over()
        nothing_left(pinned)
    with t.case("a ring that is left, and a file that is closed"):
        begin("leave")
        s.throttle(0)
        over()
        nothing_left(pinned)
    with t.case("the provider is unbound"):
        unbind = f"{{ echo {s.provider} > /sys/bus/pci/drivers/physdma_ivshmem/unbind; " \
            "echo done > /tmp/unbound; } &"
        begin("wait", "sleep,ms=1500", io(), io(command="cmd"), "unbuf,id=1", io(id=2))
        t.vm.sh(f"rm -f /tmp/unbound; {unbind}")
        time.sleep(0.3)
        assert t.vm.sh("cat /tmp/unbound", check=False).split()[-1] != "done", "it did not wait"
        s.throttle(0)
        wait(t, lambda: "done" in t.vm.sh("cat /tmp/unbound 2>/dev/null", check=False), "it waits")
        # It comes back, but not for who has had it before.
        t.vm.sh(f"echo {s.provider} > /sys/bus/pci/drivers/physdma_ivshmem/bind")
        ended = over()
        assert ended[:5] == ["wait 0", "sleep 0", "io ENODEV", "cmd ENODEV", "unbuf 0"], ended
        assert ended[5] == "io 0", ended
        nothing_left(pinned)
        assert s.attempt(s.buf(), io()) == ["1", "0"]
    with t.case("an idle buffer keeps no provider"):
        t.vm.sh(f"{{ rnvme_try rw {s.file} {s.buf()} sleep,ms=1500 {io()} > /tmp/said; "
                "echo over >> /tmp/said; } & sleep 0.5; "
                "timeout 1 sh -c "
                f"'echo {s.provider} > /sys/bus/pci/drivers/physdma_ivshmem/unbind'")
        t.vm.sh(f"echo {s.provider} > /sys/bus/pci/drivers/physdma_ivshmem/bind")
        wait(t, lambda: "io ENODEV" in t.vm.sh("cat /tmp/said"), "not ENODEV")
    with t.case("the SSD is unbound"):
        begin("wait", "sleep,ms=1500", io(), io(command="cmd"), "unbuf,id=1", s.buf())
        t.vm.sh(f"rm -f /tmp/unbound; {{ echo {address} > {driver}/unbind; "
                "echo done > /tmp/unbound; } &")
        time.sleep(0.3)
        s.throttle(0)
        wait(t, lambda: "done" in t.vm.sh("cat /tmp/unbound 2>/dev/null", check=False), "it waits")
        # Nothing is kept, though the program has the file still.
        wait(t, lambda: s.pinned() == pinned, "memory is pinned")
        ended = over()
        assert ended[:6] == ["wait 0", "sleep 0", "io ENODEV", "cmd ENODEV", "unbuf ENODEV",
                             "buf ENODEV"], ended
        t.vm.sh(f"echo {address} > {driver}/bind")
        s.find()
        assert s.attempt(s.buf(), io()) == ["1", "0"]
    with t.case("the SSD is pulled out"):
        begin("wait", io(), io(command="cmd"), "unbuf,id=1")
        device = f"{DEVICES}/{address}"
        t.vm.sh(f"{TURN_OFF.format(device=device)}; sleep 0.1; echo 1 > {device}/remove", limit=30)
        ended = over()
        assert ended[0].split()[1] in ("EIO", "ENODEV") and \
            ended[1:4] == ["io ENODEV", "cmd ENODEV", "unbuf ENODEV"], ended
        nothing_left(pinned, gone=True)
        s.throttle(0)
        t.vm.sh("echo 1 > /sys/bus/pci/rescan")
        s.find()
        assert s.attempt(s.buf(), io()) == ["1", "0"]
