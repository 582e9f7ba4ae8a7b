# SPDX-License-Identifier: GPL-2.0
"""The first files of a machine: busybox, init.sh, our programs and every module."""

import shutil
import subprocess
import threading
from pathlib import Path

from . import BUILD, ROOT


def busybox() -> Path:
    """A busybox that needs no libraries."""
    found = shutil.which("busybox")
    if not found:
        raise FileNotFoundError("busybox is missing: make packages")
    return Path(found).resolve()


def modules(kernel: Path) -> list[Path]:
    """The modules that this kernel was built with."""
    names = (kernel / "modules.order").read_text().split()
    return [(kernel / name).with_suffix(".ko") for name in names]


# Of tools/p2pcp, built by `make tools`; and a script.
TOOLS = [*(BUILD / "tools" / name for name in ("p2pcp", "rnvme_try", "rnvme_rate")),
         ROOT / "tools/physdmactl/physdmactl"]

# Machines are started by several threads.
LOCK = threading.Lock()


def initramfs(kernel: Path) -> Path:
    """Makes the archive for this kernel, unless it is up to date."""
    with LOCK:
        return make(kernel)


def make(kernel: Path) -> Path:
    """The same, for one at a time."""
    archive = BUILD / f"initramfs-{kernel.name}.cpio"
    contents = {
        "init": Path(__file__).with_name("init.sh"),
        "bin/busybox": busybox(),
        **{f"bin/{tool.name}": tool for tool in TOOLS},
        **{f"modules/{module.name}": module for module in modules(kernel)},
    }
    listed = "".join(f"{name}\n" for name in contents)
    tree = BUILD / f"initramfs-{kernel.name}"
    if archive.exists() and (tree / "list").read_text() == listed and \
       all(file.stat().st_mtime < archive.stat().st_mtime for file in contents.values()):
        return archive
    shutil.rmtree(tree, ignore_errors=True)
    for name, file in contents.items():
        (tree / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tree / "files" / name)
        (tree / "files" / name).chmod(0o755)
    names = "".join(f"{path.relative_to(tree / 'files')}\n"
                    for path in sorted((tree / "files").rglob("*")))
    made = archive.with_suffix(".tmp")
    with open(made, "wb") as output:
        subprocess.run(["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"], input=names.encode(),
                       cwd=tree / "files", stdout=output, check=True)
    (tree / "list").write_text(listed)
    made.rename(archive)
    return archive
