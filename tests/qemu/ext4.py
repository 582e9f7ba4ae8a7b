# SPDX-License-Identifier: GPL-2.0
"""A file system on an SSD: what programs wrote is what the host reads.

fio writes requests of 4 KiB to 1 MiB at several queue depths and verifies
them; then the host takes the files out of the image by itself and compares.
"""

import hashlib
import json
import subprocess

from harness.topology import Ivshmem, Machine, Ssd

# What the counters mean, for the table of `make run`.
MEANINGS = {
    "requests": "that the driver carried out, flushes and the like included",
    "bytes": "of data, read and written",
    "segments": "DMA addresses that the SSDs were given",
    "segments per request": "of those that have data: 1.00 is the least",
    "single": "requests of one piece of memory, mapped by itself",
    "iova_ranges": "requests of many pieces, mapped as one range of the IOMMU",
    "piecewise": "requests of many pieces, each mapped by itself",
    "bus": "requests to another device's memory, by its bus address",
    "internal": "requests to the SSD's own memory",
    "mixed": "requests to more than one kind of memory",
    "spilled": "requests that had to remember more than one mapping",
}

SIZE_MB = 16            # of each file
DEPTHS = (1, 8, 64)     # requests at a time, a file for each

# Reads a file with O_DIRECT into memory at several offsets in a page.
UNALIGNED = r"""
import mmap, os, sys
size, page = 1 << 17, mmap.PAGESIZE
disk = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
memory = memoryview(mmap.mmap(-1, size + 2 * page))
assert os.preadv(disk, [memory[:size]], 0) == size
whole = bytes(memory[:size])
assert any(whole)
for offset in (4, 0x200, 0x800, 0xffc):
    for length in (page, 5 * page, size):
        memory[:] = bytes(len(memory))
        buffer = memory[offset:offset + length]
        assert os.preadv(disk, [buffer], 0) == length
        assert buffer == whole[:length], f"{length} bytes at {offset:#x} differ"
"""


# In which mode rnvme uses neither SGL descriptors nor doorbells in memory, as for a controller that
# has none of that: behind an IOMMU most requests would have the one.
PLAIN = "lazy"
LONG_MB = 12            # what is moved by long lists then


def machine(mode):
    return Machine(iommu=mode, host_files=True,
                   devices=[Ssd(size_mb=(len(DEPTHS) + 1) * SIZE_MB * 2, transfer_mb=4),
                            Ssd(size_mb=SIZE_MB * 4, block_size=4096, queues=1, transfer_mb=4),
                            *([Ivshmem(size_mb=4)] if mode == PLAIN else [])])


def fio(depth, directory):
    """fio's command: random writes of all sizes, then each read and verified."""
    return (f"fio --name=depth{depth} --directory={directory} --filename=depth{depth} "
            f"--size={SIZE_MB}M --rw=randwrite --bsrange=4k-1m --blockalign=4k --direct=1 "
            f"--ioengine=io_uring --iodepth={depth} --verify=crc32c --verify_fatal=1 "
            f"--do_verify=1 --randseed={depth} --end_fsync=1 --output-format=json "
            f"--output=/tmp/fio.json && cat /tmp/fio.json")


def softirqs(t):
    """How many times each CPU has ended requests that the interrupt's CPU had left to it, or to
    later."""
    return [int(word) for word in t.vm.sh("grep BLOCK: /proc/softirqs").split()[1:]]


def run(t):
    ssd, other, *memory = t.machine.devices
    with t.case("load"):
        if t.driver == "rnvme" and t.mode == PLAIN:
            t.vm.load("rnvme", "plain=1")
        t.load_driver()
        disk, second = t.disk(ssd), t.disk(other)
        assert t.vm.sh(f"blockdev --getss {second}").strip() == "4096"
    with t.case("mkfs"):
        t.vm.sh(f"mkfs.ext4 -q {disk} && mkdir /mnt/fs && mount {disk} /mnt/fs")
    errors = 0
    for depth in DEPTHS:
        with t.case(f"fio, {depth} at a time"):
            # With an I/O scheduler a request is not ended in a batch.
            t.vm.sh(f"echo {'mq-deadline' if depth == 8 else 'none'} > "
                    f"/sys/block/{disk.rpartition('/')[2]}/queue/scheduler")
            job = json.loads(t.vm.sh(fio(depth, "/mnt/fs")))["jobs"][0]
            errors += job["error"] + job.get("total_err", 0)
            assert errors == 0, f"fio counts {errors} errors"
            assert job["read"]["io_kbytes"] == SIZE_MB << 10, "not all was verified"
    with t.case("4096-byte blocks"):
        t.vm.sh(f"mkfs.ext4 -q {second} && mkdir /mnt/fs2 && mount {second} /mnt/fs2 && "
                "cp /mnt/fs/depth1 /mnt/fs2 && umount /mnt/fs2 && mount {0} /mnt/fs2 && "
                "cmp /mnt/fs/depth1 /mnt/fs2/depth1 && umount /mnt/fs2".format(second))
    with t.case("one queue for two CPUs, each of which ends its own requests"):
        queue = f"/sys/block/{second.rpartition('/')[2]}"
        t.vm.sh(f"[ $(ls -d {queue}/mq/*/ | wc -l) = 1 ] && mount {second} /mnt/fs2")
        for affinity, ends in (0, 1), (2, 2):
            t.vm.sh(f"echo {affinity} > {queue}/queue/rq_affinity")
            before = softirqs(t)
            # The interrupt comes to one CPU, the requests come from both.
            t.vm.sh("for cpu in 0 1; do taskset -c $cpu dd if=/mnt/fs2/depth1 bs=64k iflag=direct "
                    "status=none | cmp - /mnt/fs/depth1 & jobs=\"$jobs $!\"; done; "
                    "for job in $jobs; do wait $job || exit; done")
            ended = [after - count for after, count in zip(softirqs(t), before)]
            print(f"        rq_affinity {affinity}: {ended} softirqs for requests")
            if t.driver == "rnvme":
                assert sum(count > 100 for count in ended) == ends, ended
        t.vm.sh("umount /mnt/fs2")
    with t.case("memory that starts within a page"):
        # Not aligned, so that the first and the last page are used in part.
        t.vm.sh(f"cat > /tmp/unaligned.py <<'EOF'\n{UNALIGNED}\nEOF\n"
                "python3 /tmp/unaligned.py /mnt/fs/depth1")
    with t.case("unmount"):
        t.vm.sh("umount /mnt/fs")
        # Read back through a cold cache, and counted.
        t.vm.sh(f"echo 3 > /proc/sys/vm/drop_caches && mount -o ro {disk} /mnt/fs")
        seen = dict(reversed(line.split()) for line in
                    t.vm.sh("cd /mnt/fs && sha256sum depth*").splitlines())
        t.vm.sh("umount /mnt/fs")
        statistics = [int(word) for word in
                      t.vm.sh(f"cat /sys/block/{disk.rpartition('/')[2]}/stat").split()]
    is_plain = t.driver == "rnvme" and t.mode == PLAIN
    if is_plain:
        # 768 pages, or one less: more than a list has entries.
        with t.case("commands of 3 MiB, whose pages are in two lists"):
            most = t.vm.sh("cat /sys/block/rnvme*/queue/max_hw_sectors_kb").split()
            assert most == ["4096"] * 2, most
            t.vm.load("physdma_ivshmem")
            t.vm.sh(f"p2pcp -qv -s {LONG_MB}M -c 3M {disk} {t.machine.address(memory[0])}/2 "
                    f"{second} && sync")
            t.vm.unload("physdma_ivshmem")
    with t.case("unload"):
        t.unload_driver()
        t.vm.power_off()
    with t.case("host's own reading"):
        image = ssd.images[0]
        if is_plain:
            check(["cmp", "-n", f"{LONG_MB << 20}", image, other.images[0]])
        check(["e2fsck", "-fn", image])
        for depth in DEPTHS:
            name = f"depth{depth}"
            content = check(["debugfs", "-R", f"cat /{name}", image])
            assert len(content) == SIZE_MB << 20, f"{name} has {len(content)} bytes"
            assert hashlib.sha256(content).hexdigest() == seen[name], f"{name} differs"

    # The driver's own counters, of both disks, or else the block layer's.
    counters = {"requests": statistics[0] + statistics[4],
                "bytes": (statistics[2] + statistics[6]) * 512, **t.counters()}
    if "segments" in counters:
        with_data = sum(counters[path] for path in
                        ("single", "iova_ranges", "piecewise", "bus", "internal", "mixed"))
        counters["segments per request"] = f"{counters['segments'] / with_data:.2f}"
    t.table = [
        ("driver, IOMMU", f"{t.driver}, {t.mode}", ""),
        *((name.replace("_", " "), value if isinstance(value, str) else f"{value:,}",
           MEANINGS.get(name, "")) for name, value in counters.items()),
        ("errors", f"{errors}", "that fio counted"),
    ]
    t.conclusion = (f"Every byte of {len(DEPTHS)} files of {SIZE_MB} MiB was verified by fio, and the "
                    "host read the same from the disk's image.")


def check(command):
    """Runs a command on the host, returns its output."""
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, f"{command[0]}: {done.stdout[-500:]!r} {done.stderr[-500:]!r}"
    return done.stdout
