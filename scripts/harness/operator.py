# SPDX-License-Identifier: GPL-2.0
"""What an operator of a machine sees: the files in debugfs, and what physdmactl
makes of them."""

import json
import subprocess
import tempfile
from pathlib import Path

from . import ROOT


def show(t, file):
    return t.vm.sh(f"cat /sys/kernel/debug/physdma/{file}").splitlines()


def rows(t):
    """The matrix: (provider, BAR, client) -> hops, mapped, in flight, refused; route."""
    table = {}
    for line in show(t, "routes")[1:]:
        provider, bar, client, hops, mapped, in_flight, refused, way = line.split(None, 7)
        table[provider, int(bar), client] = \
            hops, [int(mapped), int(in_flight), int(refused)], way
    return table


def failures(t):
    return {name: int(times) for name, times in (line.split() for line in show(t, "errors"))}


def physdmactl(t, *words):
    """What the tool makes of the same files, on the host: its exit code, and what it says."""
    with tempfile.TemporaryDirectory() as directory:
        for file in "providers", "routes", "errors":
            Path(directory, file).write_text("\n".join([*show(t, file), ""]))
        done = subprocess.run([ROOT / "tools/physdmactl/physdmactl", "--json", "--debugfs", directory,
                               *words], capture_output=True, text=True, check=False)
        assert not done.stderr or done.returncode == 2, done.stderr
        return done.returncode, json.loads(done.stdout) if done.returncode != 2 else done.stderr


def agrees(t):
    """Fails unless physdmactl says of routes and errors what the files have."""
    _, listed = physdmactl(t, "routes")
    table = {(row["provider"], row["bar"], row["client"]): row for row in listed}
    expected = rows(t)
    assert set(table) == set(expected), listed
    for pair, (hops, counts, way) in expected.items():
        row = table[pair]
        assert [row["mapped"], row["in_flight"], row["refused"]] == counts, row
        assert row["hops"] == (None if hops == "-" else int(hops)), row
        joint = ": " if row["route"] == "refused" else ", "
        assert joint.join(filter(None, (row["route"], row["detail"]))) == way, row
        code, answer = physdmactl(t, "why", pair[2].removeprefix("0000:"), f"{pair[0]}/{pair[1]}")
        assert answer == [row] and code == (row["route"] == "refused"), answer
    _, errors = physdmactl(t, "errors")
    assert {row["errno"]: row["times"] for row in errors} == failures(t), errors
