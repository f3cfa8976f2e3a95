"""Two machines on one: network namespaces joined by a cable, each with an address of its own."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

INTERFACE = "cable"


@dataclass(frozen=True)
class Machine:
    """What runs in it has its own loopback, ports and interface, and the file system of all."""

    name: str
    address: str
    core: int

    def start(self, command: list[str], environment: dict[str, str], log: int) -> subprocess.Popen[bytes]:
        inside = ["ip", "netns", "exec", self.name, "taskset", "--cpu-list", str(self.core)]
        return subprocess.Popen([*inside, *command], env=environment, stdout=log, stderr=log)

    def kill(self) -> None:
        """As a power cut: everything that runs in it is gone at once."""
        for pid in _ip("netns", "pids", self.name).stdout.split():
            os.kill(int(pid), signal.SIGKILL)


@contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Two machines with a cable between them; the test is skipped where namespaces are not permitted."""
    cores = sorted(os.sched_getaffinity(0))
    names = [f"softrepa-{os.getpid()}-{index}" for index in (0, 1)]
    machines = [Machine(name, f"10.77.0.{index + 1}", cores[index % len(cores)]) for index, name in enumerate(names)]
    try:
        for name in names:
            added = _ip("netns", "add", name, check=False)
            if added.returncode != 0:
                pytest.skip(f"no network namespaces here: {added.stderr.strip()}")
        first, second = names
        _ip("link", "add", INTERFACE, "netns", first, "type", "veth", "peer", "name", INTERFACE, "netns", second)
        for machine in machines:
            _ip("-n", machine.name, "address", "add", f"{machine.address}/24", "dev", INTERFACE)
            for interface in ("lo", INTERFACE):
                _ip("-n", machine.name, "link", "set", interface, "up")
        yield machines[0], machines[1]
    finally:
        for machine in machines:
            if _ip("netns", "pids", machine.name, check=False).returncode == 0:
                machine.kill()
                _ip("netns", "delete", machine.name)


def _ip(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=check)
