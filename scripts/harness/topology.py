# SPDX-License-Identifier: GPL-2.0
"""What a machine consists of, and the arguments by which QEMU makes it.

    Machine(iommu="strict", devices=[Ssd(), Ssd(block_size=4096)])

is a q35 machine of two CPUs with two SSDs, each below a root port of its own,
behind an Intel IOMMU in strict mode.
"""

from dataclasses import dataclass, field
from pathlib import Path

# What the kernel is told for each; "swiotlb" has no IOMMU and bounces all RAM.
IOMMU_MODES = {
    "off": ["intel_iommu=off"],
    "passthrough": ["intel_iommu=on", "iommu=pt"],
    "lazy": ["intel_iommu=on", "iommu=nopt", "iommu.strict=0"],
    "strict": ["intel_iommu=on", "iommu=nopt", "iommu.strict=1"],
    "swiotlb": ["intel_iommu=off", "swiotlb=force"],
}


@dataclass(eq=False)
class Device:
    """A PCI device. Below a port (of a root port or the switch) of its own
    unless `port` is false; `options` are more properties for QEMU."""

    port: bool = True
    options: dict = field(default_factory=dict)

    def arguments(self, number: int, bus: str, files: Path) -> list[str]:
        """QEMU's arguments for this device, the `number`th of the machine, on
        `bus`; `files` is a directory for what it needs."""
        raise NotImplementedError

    def device(self, driver: str, bus: str, **properties) -> list[str]:
        properties = {"bus": bus, **properties, **self.options}
        return ["-device", ",".join([driver, *(f"{k}={v}" for k, v in properties.items())])]


@dataclass(eq=False)
class Ssd(Device):
    """An NVMe SSD. Its namespaces are sparse files, `images`, made when the
    machine starts unless given; with `detached` none of them is attached.
    `namespace_options` are more properties of each for QEMU.
    cmb and pmr are the MiB of its controller and persistent memory buffers;
    queues is how many pairs it has for I/O, if not QEMU's 64; transfer_mb what a
    command can move at most, if not QEMU's half a MiB. One without a medium
    answers at once, with zeroes, and takes what it is given nowhere."""

    size_mb: int = 64
    namespaces: int = 1
    block_size: int = 512
    cmb_mb: int = 0
    pmr_mb: int = 0
    queues: int = 0
    transfer_mb: int = 0
    serial: str = ""
    detached: bool = False
    medium: bool = True
    namespace_options: dict = field(default_factory=dict)
    images: list[Path] = field(default_factory=list)

    def arguments(self, number, bus, files):
        name = f"nvme{number}"
        properties = {"id": name, "serial": self.serial or f"physdma{number}"}
        arguments = []
        if self.queues:
            properties["max_ioqpairs"] = self.queues
        if self.transfer_mb:
            # An SSD says the power of two of pages.
            properties["mdts"] = (self.transfer_mb << 8).bit_length() - 1
        if self.cmb_mb:
            properties["cmb_size_mb"] = self.cmb_mb
        if self.pmr_mb:
            memory = sparse(files / f"{name}.pmr", self.pmr_mb)
            arguments += ["-object", f"memory-backend-file,id={name}-pmr,share=on,"
                          f"mem-path={memory},size={self.pmr_mb}M"]
            properties["pmrdev"] = f"{name}-pmr"
        arguments += self.device("nvme", bus, **properties)
        while self.medium and len(self.images) < self.namespaces:
            self.images.append(sparse(files / f"{name}n{len(self.images) + 1}.img", self.size_mb))
        backends = [f"file={image},format=raw,discard=unmap" for image in self.images] or \
            [f"driver=null-co,size={self.size_mb}M,read-zeroes=on"] * self.namespaces
        for nsid, backend in enumerate(backends, 1):
            drive = f"{name}n{nsid}"
            arguments += ["-drive", f"{backend},if=none,id={drive}"]
            arguments += ["-device", f"nvme-ns,drive={drive},bus={name},nsid={nsid},"
                          f"logical_block_size={self.block_size},"
                          f"physical_block_size={self.block_size},"
                          f"detached={'on' if self.detached else 'off'}" +
                          "".join(f",{k}={v}" for k, v in self.namespace_options.items())]
        return arguments


@dataclass(eq=False)
class Edu(Device):
    """QEMU's teaching device: one DMA of at most 4 KiB at a time."""

    port: bool = False
    dma_bits: int = 28

    def arguments(self, number, bus, files):
        return self.device("edu", bus, id=f"edu{number}", dma_mask=hex((1 << self.dma_bits) - 1))


@dataclass(eq=False)
class PciTestdev(Device):
    """A device with BARs and no DMA."""

    port: bool = False
    memory_mb: int = 0

    def arguments(self, number, bus, files):
        properties = {"membar": f"{self.memory_mb}M"} if self.memory_mb else {}
        return self.device("pci-testdev", bus, id=f"testdev{number}", **properties)


@dataclass(eq=False)
class Ivshmem(Device):
    """A BAR of plain memory, which the host sees as the file `memory`."""

    size_mb: int = 16
    memory: Path | None = None

    def arguments(self, number, bus, files):
        name = f"ivshmem{number}"
        self.memory = self.memory or sparse(files / f"{name}.mem", self.size_mb)
        return ["-object", f"memory-backend-file,id={name}-mem,share=on,"
                f"mem-path={self.memory},size={self.size_mb}M",
                *self.device("ivshmem-plain", bus, id=name, memdev=f"{name}-mem")]


@dataclass
class Machine:
    """A q35 machine.

    iommu      one of IOMMU_MODES
    devices    on the PCI bus, in this order
    switch     the ports are those of one switch, not root ports
    cpu        the model; the kernel allows P2P through the host bridge for EPYC
    icount     guest time counts instructions (1 ns each); one CPU
    trace      patterns of QEMU's trace events, written to trace.log
    hotplug    devices can be unplugged from their ports, as PCI Express has it
    host_files the machine sees the host's files, and commands run on them
    append     more of the kernel's command line
    """

    iommu: str = "strict"
    devices: list[Device] = field(default_factory=list)
    switch: bool = False
    cpu: str = "EPYC"
    cpus: int = 2
    memory: str = "1G"
    icount: bool = False
    trace: list[str] = field(default_factory=list)
    hotplug: bool = False
    host_files: bool = False
    append: list[str] = field(default_factory=list)

    @property
    def has_iommu(self) -> bool:
        return self.iommu not in ("off", "swiotlb")

    def address(self, device: Device) -> str:
        """The PCI address of a device below a port."""
        below = [other for other in self.devices if other.port]
        # Buses are numbered port by port; root port and switch come first.
        return f"0000:{below.index(device) + (3 if self.switch else 1):02x}:00.0"

    def qemu_arguments(self, files: Path) -> list[str]:
        """All but the kernel, the console and the agent's line."""
        irqchip = ",kernel-irqchip=split" if self.has_iommu else ""
        arguments = ["-machine", f"q35{irqchip}", "-cpu", self.cpu, "-m", self.memory,
                     "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        if self.icount:
            arguments += ["-accel", "tcg,thread=single", "-smp", "1",
                          "-icount", "shift=0,sleep=off"]
        else:
            arguments += ["-accel", "tcg,thread=multi", "-smp", str(self.cpus)]
        for pattern in self.trace:
            arguments += ["-trace", pattern]
        if self.trace:
            arguments += ["-D", str(files / "trace.log")]
        if self.hotplug:
            arguments += ["-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"]
        if self.has_iommu:
            # Before the devices that are to be behind it.
            arguments += ["-device", "intel-iommu,intremap=on"]
        if self.host_files:
            arguments += ["-fsdev", "local,id=host,path=/,security_model=none,readonly=on,"
                          "multidevs=remap", "-device", "virtio-9p-pci,fsdev=host,mount_tag=host"]
        if self.switch:
            arguments += ["-device", "pcie-root-port,id=root,chassis=1,slot=1",
                          "-device", "x3130-upstream,id=switch,bus=root"]
        for number, device in enumerate(self.devices):
            bus = "pcie.0"
            if device.port:
                bus = f"port{number}"
                kind = "xio3130-downstream" if self.switch else "pcie-root-port"
                above = "switch" if self.switch else "pcie.0"
                arguments += ["-device", f"{kind},id={bus},bus={above},"
                              f"chassis={number + 2},slot={number + 2}"]
            arguments += device.arguments(number, bus, files)
        return arguments

    def kernel_arguments(self) -> list[str]:
        # A timer that is late says nothing of a processor that is emulated by a busy one.
        return ["console=ttyS0", "panic=-1", "oops=panic", "printk.time=1", "no_timer_check",
                *IOMMU_MODES[self.iommu], *self.append]


def sparse(path: Path, size_mb: int) -> Path:
    """A file of zeroes that takes no space."""
    path.unlink(missing_ok=True)
    with open(path, "wb") as file:
        file.truncate(size_mb << 20)
    return path
