"""One training on two machines, of which one is lost in the middle."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from networks import INTERFACE, Machine, two_machines
from training_settings import BATCH

from softrepa_pipeline.soft_tokens import load_soft_tokens
from softrepa_pipeline.training import Job, launch

pytestmark = pytest.mark.slow

NUM_STEPS = 60
MAX_STARTS = 8  # of agents, before the test gives up
ENVIRONMENT = {**os.environ, "GLOO_SOCKET_IFNAME": INTERFACE, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


@pytest.fixture
def machines() -> Iterator[tuple[Machine, Machine]]:
    with two_machines() as both:
        yield both


@dataclass
class Cluster:
    """Runs a job by one torchrun agent a machine, and starts an agent that fails again, as schedulers do."""

    machines: tuple[Machine, Machine]
    job: Path
    num_starts: int = 0
    agents: dict[Machine, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, machine: Machine) -> None:
        self.num_starts += 1
        host = self.machines[0]
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{host.address}:29500", "--rdzv-id", "softrepa"]
        command += ["--rdzv-conf", f"is_host={int(machine == host)}", "--local-addr", machine.address]
        command += ["--max-restarts", "3", "-m", "softrepa_pipeline.training", str(self.job)]
        with self.log_of(machine).open("ab") as log:
            self.agents[machine] = machine.start(command, ENVIRONMENT, log.fileno())

    def finish(self) -> None:
        """Until both agents have ended well."""
        while any(agent.poll() != 0 for agent in self.agents.values()):
            for machine, agent in self.agents.items():
                if agent.poll() not in (None, 0):
                    assert self.num_starts < MAX_STARTS, self.log_of(machine).read_text()
                    self.start(machine)
            time.sleep(0.1)

    def wait_for_step(self, step: int) -> None:
        while not any(int(file.stem[5:]) >= step for file in self.job.parent.glob("step-*.json")):
            for machine, agent in self.agents.items():
                assert agent.poll() is None, self.log_of(machine).read_text()
            time.sleep(0.02)

    def log_of(self, machine: Machine) -> Path:
        return self.job.parent / f"{machine.address}.log"


@pytest.mark.parametrize("lost", [0, 1], ids=["with the rendezvous", "without the rendezvous"])
def test_a_machine_that_is_lost_and_comes_back_costs_only_the_steps_since_the_last_checkpoint(
    job: Job, tmp_path: Path, machines: tuple[Machine, Machine], lost: int
) -> None:
    execution = replace(job.execution, num_processes=2, checkpoint_steps=5)
    job = replace(job, fit=replace(BATCH, num_steps=NUM_STEPS), execution=execution)
    undisturbed, disturbed = (replace(job, folder=str(tmp_path / name)) for name in ("undisturbed", "disturbed"))
    launch(undisturbed)

    cluster = Cluster(machines, disturbed.write())
    for machine in machines:
        cluster.start(machine)
    cluster.wait_for_step(10)
    machines[lost].kill()
    cluster.finish()

    log = "".join(cluster.log_of(machine).read_text() for machine in machines)
    resumed = {int(step) for step in re.findall(r"going on from step (\d+) of 60", log)}
    assert resumed
    assert min(resumed) >= 10
    records = [json.loads(line) for line in (tmp_path / "disturbed" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(NUM_STEPS))
    wanted, found = (load_soft_tokens(each.tokens_file)[0].state_dict() for each in (undisturbed, disturbed))
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name
