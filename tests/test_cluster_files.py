"""The files that users copy to run on SLURM and Kubernetes: their syntax, the fields that KubeRay
has, and the commands in them."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from ditbench.cli.commands import COMMANDS
from ditbench.cli.parser import parsers

CLUSTERS = Path(__file__).resolve().parents[1] / "bench" / "runner" / "clusters"
SBATCH, RAYJOB = CLUSTERS / "ray.sbatch", CLUSTERS / "rayjob.yaml"

POD = {
    "spec": {
        "containers": [
            {
                "name": str, "image": str, "env?": [{"name": str, "value": str}],
                "resources": {"requests": dict, "limits": dict},
                "volumeMounts?": [{"name": str, "mountPath": str}],
            }
        ],
        "volumes?": [{"name": str, "persistentVolumeClaim": {"claimName": str}}],
    }
}  # fmt: skip
SCHEMA = {
    "apiVersion": str, "kind": str, "metadata": {"name": str},
    "spec": {
        "entrypoint": str, "submissionMode?": str, "shutdownAfterJobFinishes?": bool,
        "ttlSecondsAfterFinished?": int, "backoffLimit?": int,
        "rayClusterSpec": {
            "rayVersion?": str,
            "headGroupSpec": {"rayStartParams": dict, "template": POD},
            "workerGroupSpecs": [
                {
                    "groupName": str, "replicas?": int, "minReplicas": int, "maxReplicas": int,
                    "rayStartParams": dict, "template": POD,
                }
            ],
        },
    },
}  # fmt: skip
"""Those fields of RayJob that the file may use, with the types that KubeRay's API gives them
(rayjob_types.go and raycluster_types.go of ray.io/v1); a name with a question mark may be missing."""


def wrong(value, schema, at="job"):
    """The first thing in a document that the schema does not have; "" where there is none."""
    if isinstance(schema, type):
        return "" if type(value) is schema else f"{at} is no {schema.__name__}"
    if isinstance(schema, list):
        if not isinstance(value, list) or not value:
            return f"{at} is no list"
        entries = (wrong(entry, schema[0], f"{at}[{i}]") for i, entry in enumerate(value))
        return next(filter(None, entries), "")
    if not isinstance(value, dict):
        return f"{at} is no mapping"
    of = {name.removesuffix("?"): kind for name, kind in schema.items()}
    if others := value.keys() - of.keys():
        return f"{at} has {sorted(others)}"
    if missing := {n for n in schema if not n.endswith("?")} - value.keys():
        return f"{at} lacks {sorted(missing)}"
    return next(filter(None, (wrong(v, of[n], f"{at}.{n}") for n, v in value.items())), "")


@pytest.fixture
def job():
    return pytest.importorskip("yaml").safe_load(RAYJOB.read_text())


def test_the_manifest_has_the_fields_of_kuberay_and_no_others(job):
    assert wrong(job, SCHEMA) == ""
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["spec"]["submissionMode"] in ("K8sJobMode", "HTTPMode", "InteractiveMode")
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:  # KubeRay takes its parameters as texts
        assert all(type(value) is str for value in group["rayStartParams"].values())
        for container in group["template"]["spec"]["containers"]:
            assert container["resources"]["requests"] == container["resources"]["limits"]
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted <= {volume["name"] for volume in group["template"]["spec"]["volumes"]}
    assert len({g["template"]["spec"]["containers"][0]["image"] for g in groups}) == 1
    pinned = (CLUSTERS.parents[2] / "constraints.txt").read_text()
    assert f"ray=={cluster['rayVersion']}\n" in pinned


def test_the_check_finds_what_kuberay_would_refuse(job):
    job["spec"]["entrypoints"] = "x"
    assert wrong(job, SCHEMA) == "job.spec has ['entrypoints']"
    del job["spec"]["entrypoints"]
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] = "4"
    assert wrong(job, SCHEMA) == "job.spec.rayClusterSpec.workerGroupSpecs[0].replicas is no int"
    del job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]
    assert "headGroupSpec lacks ['rayStartParams']" in wrong(job, SCHEMA)


def test_the_slurm_script_is_bash():
    if not shutil.which("bash"):
        pytest.skip("no bash")
    done = subprocess.run(["bash", "-n", str(SBATCH)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    text = SBATCH.read_text()
    assert text.startswith("#!/bin/bash\n") and "set -euo pipefail" in text
    directives = re.findall(r"^#SBATCH --([\w-]+)=?\S*$", text, re.M)
    assert {"nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time"} <= {*directives}
    code = text.index("set -euo")
    assert text.rindex("#SBATCH --") < code  # those after the first command are not read


def test_the_commands_in_both_are_commands_of_ditbench(job):
    (command,) = re.findall(r"^  ditbench (run .*?)$(?!\\)", _joined(SBATCH.read_text()), re.M)
    command = re.sub(r'"\$STOP"', "60", command).replace('"$@"', "")
    command = re.sub(r'"\$DEVICE"', "cuda", command)
    for words in (shlex.split(command), shlex.split(job["spec"]["entrypoint"])[1:]):
        args = parsers(COMMANDS)[0].parse_args(words)
        assert args.engine == "ray" and args.device == "cuda"


def _joined(text):
    """A script with its continued lines on one."""
    return re.sub(r" \\\n +", " ", text).replace("ditbench run", "\n  ditbench run")
