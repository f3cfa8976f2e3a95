"""What lies in deploy/: linted by each format's own tool, and its commands read by those who would run them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from torch.distributed.run import parse_args

from softrepa_pipeline.parameters import read_parameters
from softrepa_pipeline.pipeline_registry import register_pipelines
from softrepa_pipeline.training import __main__ as entry

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
SBATCH = ROOT / "deploy" / "slurm" / "fit.sbatch"
MANIFESTS = sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))
OBJECTS = [own for file in MANIFESTS for own in yaml.safe_load_all(file.read_text())]
FIT = next(own for own in OBJECTS if own["kind"] == "Job" and own["metadata"]["name"] == "softrepa-fit")


def lint(*command: object, text: str | None = None) -> str:
    """What a linter of this environment says; nothing where all is well."""
    program = Path(sys.executable).with_name(str(command[0]))
    done = subprocess.run([program, *map(str, command[1:])], input=text, capture_output=True, text=True)
    return done.stdout + done.stderr


def pod_of(own: dict[str, Any]) -> dict[str, Any]:
    spec = own["spec"].get("jobTemplate", own)["spec"]
    return spec["template"]


def containers() -> list[dict[str, Any]]:
    return [each for own in OBJECTS if own["kind"] in ("Job", "CronJob") for each in pod_of(own)["spec"]["containers"]]


def torchrun_of(script: str) -> list[str]:
    """The arguments of the one torchrun in a shell script, its variables as they stand."""
    (command,) = re.findall(r"torchrun ((?:.*\\\n)*.*)", script)
    return re.sub(r"\$\(\(.*?\)\)", "1", command).replace("\\\n", " ").replace('"', "").split()


@pytest.mark.parametrize("own", OBJECTS, ids=lambda own: f"{own['kind']} {own['metadata']['name']}")
def test_kubernetes_schemas_know_every_field_of_the_manifests(own: dict[str, Any]) -> None:
    kubernetes_validate.validate(own, kubernetes_validate.latest_version(), strict=True)


def test_a_misspelt_field_would_be_found() -> None:
    misspelt = {**FIT, "spec": {**FIT["spec"], "backofLimit": 3}}
    with pytest.raises(kubernetes_validate.ValidationError, match="backofLimit"):
        kubernetes_validate.validate(misspelt, kubernetes_validate.latest_version(), strict=True)


def test_dockerfile_and_scripts_are_lint_clean() -> None:
    assert lint("hadolint", DOCKERFILE) == ""
    assert lint("shellcheck", SBATCH) == ""
    (script,) = pod_of(FIT)["spec"]["containers"][0]["args"]
    assert lint("shellcheck", "--shell=bash", "-", text=script) == ""


def test_what_the_dockerfile_copies_is_in_its_context() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (?:--\S+ )?(.+) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    for name in " ".join(copied).split():
        assert any(path == name or path.startswith(f"{name}/") for path in kept), name
    assert all((ROOT / path).exists() for path in kept)


@pytest.mark.parametrize("script", [SBATCH.read_text(), pod_of(FIT)["spec"]["containers"][0]["args"][0]])
def test_torchrun_takes_its_arguments(script: str) -> None:
    parsed = parse_args([word.replace("$SLURM_NNODES", "2") for word in torchrun_of(script)])
    assert (parsed.nnodes, parsed.rdzv_backend, parsed.max_restarts) == ("2", "c10d", 3)
    assert parsed.module
    assert parsed.training_script == entry.__spec__.name.removesuffix(".__main__")
    assert len(parsed.training_script_args) == 1
    if "is_host" in script:
        assert parsed.rdzv_conf == "is_host=1"


def test_the_pods_of_a_training_find_each_other() -> None:
    service = next(own for own in OBJECTS if own["kind"] == "Service")
    pod = pod_of(FIT)
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == pod["metadata"]["labels"]
    assert service["metadata"]["name"] == pod["spec"]["subdomain"]
    (container,) = pod["spec"]["containers"]
    arguments = torchrun_of(container["args"][0])
    endpoint = arguments[arguments.index("--rdzv-endpoint") + 1]
    assert endpoint.startswith(f"{FIT['metadata']['name']}-0.{pod['spec']['subdomain']}:")
    assert int(arguments[arguments.index("--nnodes") + 1]) == FIT["spec"]["completions"] == FIT["spec"]["parallelism"]
    assert arguments[arguments.index("--nproc-per-node") + 1] == container["resources"]["limits"]["nvidia.com/gpu"]


def test_pipelines_environments_and_parameters_exist() -> None:
    commands = [" ".join(each["args"]) for each in containers() if each["name"] == "kedro"]
    commands.append(SBATCH.read_text().replace('"$environment"', "sd3").replace('"$params,', "dataset=x,"))
    pipelines = register_pipelines()
    for command in commands:
        assert re.search(r"--pipelines[= ](\w+)", command)[1] in pipelines  # type: ignore[index]
        environment = re.search(r"--env[= ](\w+)", command)[1]  # type: ignore[index]
        changes = re.search(r"--params[= ]([^\s\"]+)", command)[1]  # type: ignore[index]
        read_parameters(environment, changes)


def test_what_waits_for_a_job_and_what_writes_it_name_the_same_file() -> None:
    (kedro,) = [each for each in containers() if "--pipelines=train" in each.get("args", [])]
    (file,) = re.findall(r"execution\.job_file=(\S+)", kedro["args"][-1])
    (torchrun,) = pod_of(FIT)["spec"]["containers"]
    assert {"name": "JOB", "value": file} in torchrun["env"]
    (mount,) = kedro["volumeMounts"]
    assert mount in torchrun["volumeMounts"]
    assert file.startswith(f"{mount['mountPath']}/")
