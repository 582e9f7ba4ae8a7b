# SPDX-License-Identifier: GPL-2.0
"""How clients reach a provider in machines of several shapes, said three times:
by the kernel of each two devices; by the layer, which also looks whether the
client can address the memory, and whether all its DMA is bounced; and by
debugfs and physdmactl, which an operator asks before anybody tries.

The modes are the machines; the KUnit modules log verdicts and routes.
"""

import re

from harness.operator import agrees, failures, physdmactl, rows, show
from harness.topology import Edu, Ivshmem, Machine, Ssd
from harness.vm import CommandError

INTEL = "Skylake-Client-v1"  # whose host bridge is not on the kernel's list
NOT_LISTED = "host bridge 8086:29c0 is not on the kernel's list"
APART = f"{NOT_LISTED}: put both devices below one PCIe switch"
PORT = "0000:00:01.0"
REDIRECT = f"ACS redirect at {PORT}"
REDIRECTED = f"{REDIRECT}, and {NOT_LISTED}: boot with pci=disable_acs_redir={PORT}"

BUS, BRIDGE = "bus address, offset 0x0", "host bridge"
# The device addresses 28 bits, and the memory is just below 4 GiB.
MASK = r"it cannot address 0xf[0-9a-f]{7}: its DMA mask is 0xfffffff"
BOUNCE = ("all its DMA is bounced through RAM: boot without swiotlb=force, or with an IOMMU")

# The machine; what the kernel says of its devices; and how a client reaches
# memory that addresses 32 bits, and one that does 28.
MACHINES = {
    "switch": (dict(switch=True, iommu="off", cpu=INTEL), "BusAddress, distance 4", BUS, MASK),
    "switch-bounced": (dict(switch=True, iommu="swiotlb"), "BusAddress, distance 4", BUS, MASK),
    "ports": (dict(iommu="off"), "HostBridge, distance 4", BRIDGE, MASK),
    "ports-passthrough": (dict(iommu="passthrough"), "HostBridge, distance 4", BRIDGE, MASK),
    "ports-strict": (dict(iommu="strict"), "HostBridge, distance 4", BRIDGE, BRIDGE),
    "ports-bounced": (dict(iommu="swiotlb"), "HostBridge, distance 4", BOUNCE, BOUNCE),
    "ports-intel": (dict(iommu="off", cpu=INTEL), APART, APART, APART),
    # Two functions of what is plugged into one port, which redirects if there is an IOMMU.
    "redirect": (dict(iommu="strict"), f"HostBridge, distance 2, {REDIRECT}", BRIDGE, BRIDGE),
    "redirect-intel": (dict(iommu="strict", cpu=INTEL), REDIRECTED, REDIRECTED, REDIRECTED),
    # What the line before recommends helps.
    "redirect-disabled": (dict(iommu="strict", cpu=INTEL,
                               append=[f"pci=disable_acs_redir={PORT}"]),
                          "BusAddress, distance 2", BUS, MASK),
}
MODES = [*MACHINES, "refusals"]
# The RAM is too little for a kernel full of checks.
KERNELS = ["kernel", "kernel-kind"]


# What no machine has.
APART_TWO = "host bridge 8086:2f00 is on the kernel's list only for devices that are both below " \
    "it: move one"
NOT_PCI = "the client is not a PCI device"
DISABLED = "the kernel is built without CONFIG_PCI_P2PDMA"
HIDDEN = "other devices cannot access the provider's BARs"


# How often a suite sees which errno. Between them they see each.
SUITES = {
    "physdma_one": {"EINVAL": 4, "EFAULT": 1, "ENOMEM": 1, "other": 1},
    "physdma_premap": {"EINVAL": 17, "ENODEV": 1, "EPERM": 4, "other": 6},
}


def machine(mode):
    if mode in ("refusals", "disabled"):
        return Machine(iommu="off", devices=[Ivshmem(), Ivshmem(size_mb=4),
                                             Edu(port=True, dma_bits=32)])
    # RAM has to fit 28 bits too, where nothing translates.
    made = Machine(memory="256M", **MACHINES[mode][0])
    if mode.startswith("redirect"):
        made.devices = [Ivshmem(options={"multifunction": "on"}),
                        Edu(port=False, options={"bus": "port0", "addr": "0.1"})]
    else:
        made.devices = [Ivshmem(), Ivshmem(size_mb=4), Edu(port=True), Ssd(cmb_mb=4)]
    return made


def is_refused(way):
    return way not in (BUS, BRIDGE)


def logged(t, module, suite, pattern):
    """What the suite of a KUnit module logs."""
    at = len(t.vm.log())
    t.vm.load(module)
    t.vm.sh(f"echo 1 > /sys/kernel/debug/kunit/{suite}/run")
    t.vm.unload(module)
    return re.findall(pattern, t.vm.log()[at:])


def run(t):
    if t.mode in ("refusals", "disabled"):
        return {"refusals": refusals, "disabled": disabled}[t.mode](t)
    _, verdict, wide, narrow = MACHINES[t.mode]
    memory = [device for device in t.machine.devices if isinstance(device, Ivshmem)]
    providers = [t.machine.address(device) for device in memory]
    edu = next(device for device in t.machine.devices if isinstance(device, Edu))
    edu = t.machine.address(edu) if edu.port else providers[0][:-1] + "1"
    ssds = [t.machine.address(device) for device in t.machine.devices if isinstance(device, Ssd)]

    with t.case("verdicts"):
        said = logged(t, "pci_p2pdma_kunit", "pci_p2pdma_pairs",
                      r"verdict: (\S+) (reaches|does not reach) (\S+): (.*\S)")
        known = {*providers, edu, *ssds}
        for client, how, provider, what in said:
            expected = ("reaches", "BusAddress, distance 0") if client == provider else \
                ("reaches" if "distance" in verdict else "does not reach", verdict)
            assert (how, what) == expected, f"{client} {how} {provider}: {what}"
        assert {(line[0], line[2]) for line in said} == {(a, b) for a in known for b in known}, said

    with t.case("routes"):
        said = logged(t, "physdma_kunit", "physdma_reach",
                      r"route: (\S+) (reaches|does not reach) (\S+): (.*\S)")
        names = {BUS: r"Bus \{ offset: 0 \}, \d hops", BRIDGE: r"HostBridge, \d hops"}
        for client, how, provider, what in said:
            way = narrow if client == edu else wide
            expected = names.get(way, way)
            if client == provider:
                way, expected = BUS, r"Internal \{ bar: 2, offset: 0 \}, 0 hops"
            assert how == ("does not reach" if is_refused(way) else "reaches") and \
                re.fullmatch(expected, what), f"{client} {how} {provider}: {what}"
        assert len(said) == len(providers) * (len(providers) + 1), said

    operator(t, providers, edu, ssds, wide, narrow)


def operator(t, providers, edu, ssds, wide, narrow):
    with t.case("debugfs: nothing yet"):
        t.vm.load("physdma")
        assert [len(show(t, file)) for file in ("providers", "routes")] == [1, 1]
        before = failures(t)
        assert list(before) == ["EINVAL", "EFAULT", "ENODEV", "EPERM", "ENOMEM", "other"], before
        for client, provider, said in ((edu, providers[0], "lends no memory"),
                                       ("one", providers[0], "is no PCI address"),
                                       (edu, "one/two", "is no number of a BAR")):
            code, answer = physdmactl(t, "why", client, provider)
            assert code == 2 and said in answer, answer

    with t.case("debugfs: providers"):
        t.vm.load("physdma_ivshmem")
        t.vm.load("physdma_edu")
        if ssds:
            t.vm.load("rnvme")
            t.disk(next(device for device in t.machine.devices if isinstance(device, Ssd)))
        found = {}
        for line in show(t, "providers")[1:]:
            device, bar, first, last, *rest = line.split()
            found[device] = int(bar), int(first, 0), int(last, 0), rest
        assert set(found) == {*providers, *ssds}, found
        for device, (bar, first, last, rest) in found.items():
            resource = t.vm.sh(f"sed -n {bar + 1}p /sys/bus/pci/devices/{device}/resource")
            start, end, _ = (int(word, 0) for word in resource.split())
            assert rest == ["no", "open", "0", "0", "0"], f"{device}: {rest}"
            if device in providers:
                assert (bar, first, last) == (2, start, end), f"{device}: {first:#x}-{last:#x}"
            else:
                assert start <= first < last <= end, f"{device}: {first:#x}-{last:#x}"
        _, listed = physdmactl(t, "providers")
        assert {row["provider"]: (row["bar"], int(row["first"], 0), int(row["last"], 0))
                for row in listed} == {name: row[:3] for name, row in found.items()}, listed
        for row in listed:
            assert (row["pages"], row["state"], row["holders"]) == (False, "open", []), row
            assert row["bytes"] == int(row["last"], 0) - int(row["first"], 0) + 1, row
            assert row["in_flight"] == row["cpu_maps"] == row["bios"] == 0, row

    with t.case("debugfs: routes before anybody tries"):
        table = rows(t)
        bars = {device: bar for device, (bar, *_) in found.items()}
        assert set(table) == {(provider, bar, client) for provider, bar in bars.items()
                              for client in (edu, *ssds)}, table
        for (provider, bar, client), (hops, counts, way) in table.items():
            expected = narrow if client == edu else wide
            if provider == client:
                assert (hops, way) == ("0", f"internal, BAR {bar}"), f"{client}: {way}"
            elif is_refused(expected):
                assert hops == "-" and re.fullmatch(f"refused: {expected}", way), \
                    f"{client} to {provider}: {way}"
            else:
                assert int(hops) in (2, 4) and way == expected, f"{client} to {provider}: {way}"
            assert counts == [0, 0, 0], f"{client} to {provider}: {counts}"
        agrees(t)
        code, answer = physdmactl(t, "why", "0000:00:1f.0", providers[0])
        assert code == 2 and "is no client" in answer, answer

    with t.case("debugfs: counters"):
        before = failures(t)
        # Somebody tries: to fetch from the first provider, and from where there is nothing.
        for address in found[providers[0]][1], 0x1000:
            refused = address == 0x1000 or is_refused(narrow)
            assert fetches(t, edu, address) != refused, f"a transfer from {address:#x}"
            if not refused:
                _, counts, _ = rows(t)[providers[0], 2, edu]
                assert counts == [1, 0, 0], counts
        added = {name: times - before[name] for name, times in failures(t).items()
                 if times != before[name]}
        agrees(t)
        assert added == {"EFAULT": 1, **({"EINVAL": 1} if is_refused(narrow) else {})}, added

    with t.case("debugfs: all gone"):
        t.vm.unload("physdma_edu", "physdma_ivshmem", *(["rnvme"] if ssds else []))
        assert [len(show(t, file)) for file in ("providers", "routes")] == [1, 1]
        t.vm.unload("physdma")


def fetches(t, edu, address, parameters=""):
    """Whether a device may fetch from there, which it does when its driver binds."""
    t.vm.sh("echo 0 > /sys/bus/pci/drivers_autoprobe; rmmod physdma_edu")
    t.vm.load("physdma_edu", f"{parameters} from={address:#x}")
    try:
        t.vm.sh(f"echo {edu} > /sys/bus/pci/drivers/physdma_edu/bind")
    except CommandError:
        return False
    finally:
        t.vm.sh("echo 1 > /sys/bus/pci/drivers_autoprobe")
    return True


def refuses(t, edu, provider, reason):
    """Fails unless no transfer from its memory is begun, it is counted, and the log says why."""
    first, = (int(line.split()[2], 0) for line in show(t, "providers") if line.startswith(provider))
    before, at = failures(t), len(t.vm.log())
    assert not fetches(t, edu, first, "dma_bits=32"), f"{edu} fetched from {provider}"
    assert failures(t) == {**before, "EINVAL": before["EINVAL"] + 1}, failures(t)
    t.vm.wait_for(re.escape(f"no DMA to memory of {provider}: {reason}"), after=at)


def disabled(t):
    """On a kernel that allows no transfer between devices: `make test-configs` runs it."""
    first, second, edu = (t.machine.address(device) for device in t.machine.devices)

    with t.case("reasons"):
        for module in "physdma", "physdma_ivshmem":
            t.vm.load(module)
        t.vm.load("physdma_edu", "dma_bits=32")
        ways = {pair: way for pair, (_, _, way) in rows(t).items()}
        assert ways == {(provider, 2, edu): f"refused: {DISABLED}"
                        for provider in (first, second)}, ways
        agrees(t)
        refuses(t, edu, first, DISABLED)
        t.vm.unload("physdma_edu", "physdma_ivshmem", "physdma")


def refusals(t):
    """The reasons that no machine gives."""
    first, hidden, edu = (t.machine.address(device) for device in t.machine.devices)

    with t.case("reasons"):
        t.vm.load("physdma")
        t.vm.load("physdma_ivshmem")
        # From now on its BARs are not for others, which a driver is told when it binds.
        t.vm.load("physdma_refusals", f"hidden={int(hidden[5:7], 16) << 8}")
        t.vm.load("physdma_edu", "dma_bits=32")
        ways = {pair: way for pair, (_, _, way) in rows(t).items()}
        clients = {"physdma_faux": (NOT_PCI, HIDDEN), "physdma_apart": (APART_TWO, APART_TWO),
                   edu: (None, HIDDEN)}
        assert ways == {(provider, 2, client): f"refused: {why}" if why else BRIDGE
                        for client, reasons in clients.items()
                        for provider, why in zip((first, hidden), reasons)}, ways
        agrees(t)
        refuses(t, edu, hidden, HIDDEN)

    with t.case("memory that nobody may open"):
        at = len(t.vm.log())
        driver = "/sys/bus/pci/drivers/physdma_ivshmem"
        said = t.vm.sh(f"echo {hidden} > {driver}/unbind; echo {hidden} > {driver}/bind",
                       check=False)
        assert re.search(rf"{hidden}: cannot open .* to other devices: EOPNOTSUPP", t.vm.log()[at:]), \
            said
        assert {provider for provider, *_ in rows(t)} == {first}
        t.vm.unload("physdma_edu", "physdma_refusals", "physdma_ivshmem")

    with t.case("each errno"):
        t.vm.load("physdma_kunit")
        before = failures(t)
        for suite in SUITES:
            t.vm.sh(f"echo 1 > /sys/kernel/debug/kunit/{suite}/run")
            times = failures(t)
            added = {name: times[name] - before[name] for name in times
                     if times[name] != before[name]}
            assert added == SUITES[suite], (suite, added)
            before = times
        t.vm.unload("physdma_kunit")
        agrees(t)
        t.vm.unload("physdma")
