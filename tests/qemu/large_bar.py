# SPDX-License-Identifier: GPL-2.0
"""What it takes to open 16 GiB of a device's memory to others: by physdma, as
much as for 16 MiB; by the C stack, a struct page for each page of it.

What is taken is counted where it is: in the kernel's own trace of each
allocation that the binding of the driver makes, less what it frees again.
"""

import re

from harness.topology import Ivshmem, Machine

MODES = ["off"]
LIMIT = 300

SMALL, LARGE = 16, 16 * 1024    # MiB
PAGE, STRUCT_PAGE = 4096, 64
TRACING = "/sys/kernel/tracing"
EVENTS = ["kmem/kmalloc", "kmem/kfree", "kmem/kmem_cache_alloc", "kmem/kmem_cache_free",
          "kmem/mm_page_alloc", "kmem/mm_page_free", "percpu/percpu_alloc_percpu",
          "percpu/percpu_free_percpu"]


def machine(mode):
    # Room for the pages, which take 256 MiB. The files are sparse.
    return Machine(iommu=mode, memory="2G", devices=[Ivshmem(size_mb=SMALL),
                                                     Ivshmem(size_mb=LARGE)])


def binding(t, driver, device):
    """Binds `driver` to the device; how many bytes that took in objects, and in pages, and how many
    seconds, to a hundredth, when nothing was traced."""
    address = t.machine.address(device)
    bind = f"echo {address} > /sys/bus/pci/drivers/{driver}/bind"
    unbind = bind.replace("/bind", "/unbind")
    # What the first time takes once and for all is not counted.
    t.vm.sh(f"{bind}; {unbind}", limit=200)
    uptime = "cut -d ' ' -f 1 /proc/uptime"
    start, end = t.vm.sh(f"{uptime}; {bind}; {uptime}; {unbind}", limit=200).split()
    # The process that binds is the one that is traced.
    trace = t.vm.sh(
        f"cd {TRACING}; echo 0 > tracing_on; echo > trace; echo 65536 > buffer_size_kb; "
        + "".join(f"echo 1 > events/{event}/enable; " for event in EVENTS)
        + f"sh -c 'echo $$ > set_event_pid; echo 1 > tracing_on; {bind}; echo 0 > tracing_on'; "
        "echo > set_event_pid; cat trace; echo > trace", limit=200)
    lost = re.search(r"entries-in-buffer/entries-written: (\d+)/(\d+)", trace)
    assert lost and lost[1] == lost[2], "some of the trace was lost"

    objects, pages = {}, {}
    for event, words in re.findall(r": (\w+): (.*)", trace):
        fields = dict(re.findall(r"(\w+)=(\S+)", words))
        if event in ("kmalloc", "kmem_cache_alloc"):
            objects[fields["ptr"]] = int(fields["bytes_alloc"])
        elif event in ("kfree", "kmem_cache_free"):
            objects.pop(fields["ptr"], None)
        elif event == "percpu_alloc_percpu":
            objects["percpu", fields["ptr"]] = int(fields["bytes_alloc"])
        elif event == "percpu_free_percpu":
            objects.pop(("percpu", fields["ptr"]), None)
        elif event == "mm_page_alloc":
            pages[fields["pfn"]] = PAGE << int(fields["order"])
        elif event == "mm_page_free":
            pages.pop(fields["pfn"], None)
    t.vm.sh(unbind, limit=200)
    return sum(objects.values()), sum(pages.values()), float(end) - float(start)


def run(t):
    small, large = t.machine.devices
    taken = {}
    t.vm.sh("echo 0 > /sys/bus/pci/drivers_autoprobe")
    for driver in "physdma_ivshmem", "physdma_pages":
        with t.case(f"what {driver} takes"):
            t.vm.load(driver)
            for device in small, large:
                taken[driver, device.size_mb] = binding(t, driver, device)
                objects, pages, seconds = taken[driver, device.size_mb]
                print(f"        {driver:16} {device.size_mb:6} MiB: {objects:8} bytes in objects, "
                      f"{pages // 1024:8} KiB in pages, {seconds:6.2f} s", flush=True)
            t.vm.unload(driver)

    with t.case("physdma takes as much for 16 GiB as for 16 MiB"):
        objects = [taken["physdma_ivshmem", size][0] for size in (SMALL, LARGE)]
        pages = [taken["physdma_ivshmem", size][1] for size in (SMALL, LARGE)]
        # On the debug kernel all that is locked is larger, and who looks for mistakes needs an
        # object more, now and then.
        more = 2 if t.vm.kernel.name == "kernel-debug" else 1
        assert 0 < objects[0] < 16384 * more and objects[1] <= objects[0] * more, objects
        # Now and then a page is added to what objects are made of.
        assert max(pages) <= 64 * PAGE, pages

    with t.case("with pages it is 64 bytes for each 4 KiB"):
        least = (LARGE << 20) // PAGE * STRUCT_PAGE
        assert taken["physdma_pages", LARGE][1] >= least, taken
