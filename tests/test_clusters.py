"""The files for Slurm, Kubernetes and SkyPilot in examples/clusters: they parse, and their commands are llmkit's."""

import os
import re
import shlex
import subprocess

import pytest
import yaml
from conftest import ROOT
from test_readme import parse

from llmkit import recipe, worlds
from llmkit.process import STOPPED

FILES = ROOT / "examples/clusters"


def check(command):
    found = parse(command).params
    recipe.load(found["recipe"], found["overrides"], found["output_dir"], verb="pretrain")
    assert found["resume"]
    return found


@pytest.mark.parametrize(("code", "asked"), [(0, ""), (1, ""), (STOPPED, "requeue 4711\n")])
def test_the_sbatch_file_asks_to_go_on_where_the_run_was_stopped(code, asked, tmp_path):
    for name, then in {"srun": f"exit {code}", "scontrol": ""}.items():
        (tmp_path / name).write_text(
            f'#!/bin/bash\nprintf "%s " "$@" | sed "s/ $/\\n/" >> {tmp_path}/{name}.said\n{then}\n'
        )
        (tmp_path / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "4711"}
    done = subprocess.run(["bash", str(FILES / "slurm.sbatch")], cwd=tmp_path, env=env, check=False)
    assert done.returncode == code
    said = tmp_path / "scontrol.said"
    assert (said.read_text() if said.exists() else "") == asked
    started = (tmp_path / "srun.said").read_text().partition("llmkit ")
    assert check("llmkit " + started[2])["launched"]


def test_the_options_of_the_sbatch_file():
    text = (FILES / "slurm.sbatch").read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, re.MULTILINE))
    assert "requeue" in options
    assert options["signal"].startswith("TERM@")  # not B:, which would signal the script alone
    assert re.search(r"^RUN=", text, re.MULTILINE)


def test_the_pods_of_the_kubernetes_job_are_one_world():
    service, job = yaml.safe_load_all((FILES / "kubernetes-job.yaml").read_text())
    spec = job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    variables = {each["name"]: each.get("value", "1") for each in container["env"]}
    world = worlds.find(False, variables)
    assert world.size == spec["completions"] == spec["parallelism"]
    assert world.address == f"{job['metadata']['name']}-0.{pod['subdomain']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"]["job-name"] == job["metadata"]["name"]
    assert pod["restartPolicy"] == "Never"  # a podFailurePolicy wants it
    codes, disrupted = spec["podFailurePolicy"]["rules"]
    assert codes["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [STOPPED]}
    assert disrupted["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert not check(shlex.join(container["command"]))["launched"]


def test_the_task_of_skypilot(tmp_path):
    task = yaml.safe_load((FILES / "skypilot.yaml").read_text())
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [STOPPED]
    check(task["run"].replace("s3://BUCKET", tmp_path.as_uri()))  # what writes s3:// is an extra
