"""launch/gke.sh: the JobSet it prints, against Kubernetes' own schemas."""

import os
import re
import shlex
import subprocess

import pytest

yaml = pytest.importorskip("yaml", reason="needs PyYAML")
validate = pytest.importorskip(
  "kubernetes_validate", reason="needs kubernetes-validate"
)

SLICE = {
  "--name": "acid",
  "--image": "example/aced:1",
  "--accelerator": "tpu-v5-lite-podslice",
  "--topology": "4x4",
  "--hosts": "4",
  "--chips-per-host": "4",
  "--bucket": "lake",
}
TRAIN = ("-m", "aced.train", "--workdir=/mnt/aced/x")


@pytest.fixture
def gke(repository, tmp_path):
  """Runs the script with a stand-in for kubectl, which keeps its input."""
  kubectl = tmp_path / "kubectl"
  kept = f'cat >"{tmp_path}/input"; echo "$@" >"{tmp_path}/arguments"'
  kubectl.write_text(f"#!/bin/sh\n{kept}\n")
  kubectl.chmod(0o755)

  def run(*args, command=TRAIN, **changes):
    flags = SLICE | {f"--{k.replace('_', '-')}": v for k, v in changes.items()}
    words = [w for k, v in flags.items() if v is not None for w in (k, v)]
    return subprocess.run(
      ["launch/gke.sh", *words, *args, "--", *command],
      cwd=repository,
      env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
      capture_output=True,
      text=True,
      timeout=30,
    )

  return run


@pytest.fixture
def jobset(gke):
  """Returns a maker of the parsed JobSet."""

  def make(*args, **kwargs):
    done = gke("--dry-run", *args, **kwargs)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)

  return make


def job_of(jobset):
  (replicated,) = jobset["spec"]["replicatedJobs"]
  return replicated["template"]["spec"]


def pod_of(jobset):
  return job_of(jobset)["template"]["spec"]


@pytest.mark.parametrize("version", ["1.31", "1.33"])
def test_the_job_is_one_by_the_schemas_of_kubernetes(jobset, version):
  template = jobset("--spot")["spec"]["replicatedJobs"][0]["template"]
  job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}}
  validate.validate(job | template, version, strict=True)
  pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}}
  spec = template["spec"]["template"]["spec"]
  validate.validate(pod | {"spec": spec}, version, strict=True)


def test_the_jobset_has_the_fields_of_its_api(jobset):
  whole = jobset()
  assert whole.keys() == {"apiVersion", "kind", "metadata", "spec"}
  assert whole["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
  assert whole["kind"] == "JobSet"
  assert whole["metadata"] == {
    "name": "acid",
    "annotations": {
      "alpha.jobset.sigs.k8s.io/exclusive-topology": (
        "cloud.google.com/gke-nodepool"
      )
    },
  }
  spec = whole["spec"]
  assert spec.keys() == {"network", "failurePolicy", "replicatedJobs"}
  assert spec["network"] == {"enableDNSHostnames": True, "subdomain": "acid"}
  assert spec["failurePolicy"].keys() == {"maxRestarts", "rules"}
  (rule,) = spec["failurePolicy"]["rules"]
  assert rule.keys() == {"name", "action", "onJobFailureReasons"}
  assert re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
  (replicated,) = spec["replicatedJobs"]
  assert replicated.keys() == {"name", "replicas", "template"}
  assert replicated["replicas"] == 1


def test_the_slice_is_what_was_asked_for(jobset):
  whole = jobset(hosts="2", topology="2x2x2", max_restarts="7")
  job, pod = job_of(whole), pod_of(whole)
  assert job["parallelism"] == job["completions"] == 2
  assert job["completionMode"] == "Indexed"
  assert whole["spec"]["failurePolicy"]["maxRestarts"] == 7
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
    "cloud.google.com/gke-tpu-topology": "2x2x2",
  }
  (container,) = pod["containers"]
  assert container["image"] == "example/aced:1"
  tpus = {"google.com/tpu": 4}
  assert container["resources"] == {"requests": tpus, "limits": tpus}
  assert container["command"] == ["python"]
  spot = pod_of(jobset("--spot"))["nodeSelector"]
  assert spot["cloud.google.com/gke-spot"] == "true"


def test_the_bucket_is_mounted_for_all(jobset):
  whole = jobset(service_account="trainer")
  job, pod = job_of(whole), pod_of(whole)
  annotations = job["template"]["metadata"]["annotations"]
  assert annotations["gke-gcsfuse/volumes"] == "true"
  assert pod["serviceAccountName"] == "trainer"
  volumes = {v["name"]: v for v in pod["volumes"]}
  csi = volumes["bucket"]["csi"]
  assert csi["driver"] == "gcsfuse.csi.storage.gke.io"
  assert csi["volumeAttributes"] == {
    "bucketName": "lake",
    "mountOptions": (
      "implicit-dirs,rename-dir-limit=100000,metadata-cache:ttl-secs:0"
    ),
  }
  mounts = {
    m["name"]: m["mountPath"] for m in pod["containers"][0]["volumeMounts"]
  }
  assert mounts == {"bucket": "/mnt/aced", "shared-memory": "/dev/shm"}
  assert mounts.keys() == volumes.keys()


def played(job, failure_policy, code, disrupted=False):
  """What Kubernetes and JobSet do when the first pod fails with a code."""
  reason = "BackoffLimitExceeded"
  assert job["backoffLimit"] == 0
  for rule in job["podFailurePolicy"]["rules"]:
    codes = rule.get("onExitCodes")
    if codes:
      assert (codes["operator"], codes["containerName"]) == ("NotIn", "train")
      matched = code not in codes["values"]
    else:
      (condition,) = rule["onPodConditions"]
      assert condition == {"type": "DisruptionTarget", "status": "True"}
      matched = disrupted
    if matched:
      if rule["action"] == "FailJob":
        reason = "PodFailurePolicy"
      else:
        assert rule["action"] == "Count"
      break
  for rule in failure_policy["rules"]:
    if reason in rule["onJobFailureReasons"]:
      return rule["action"]
  return "RestartJobSet"


def test_exit_codes_mean_what_they_mean_to_the_other_launchers(
  jobset, repository
):
  whole = jobset()
  job, policy = job_of(whole), whole["spec"]["failurePolicy"]
  loop = "for i in {1..255}; do if goes_on $i; then echo $i; fi; done"
  told = subprocess.run(
    ["bash", "-c", f". launch/restart.sh; {loop}"],
    cwd=repository,
    capture_output=True,
    text=True,
    check=True,
  )
  goes_on = {int(line) for line in told.stdout.split()}
  for code in range(1, 256):
    action = played(job, policy, code)
    want = "RestartJobSet" if code in goes_on else "FailJobSet"
    assert action == want, f"exit code {code}"
    assert played(job, policy, code, disrupted=True) == "RestartJobSet"
  assert [c["name"] for c in pod_of(whole)["containers"]] == ["train"]
  assert pod_of(whole)["restartPolicy"] == "Never"
  assert pod_of(whole)["terminationGracePeriodSeconds"] >= 120


HOSTILE = [
  "--config.a=('a photo of {}', \"the $HOME\")",
  "$(POD_NAME) $$(X) $$ ${NAME} ${ARGUMENTS} $",
  'quotes " and \\ and \\n',
  "two\nlines\ttab \x01\x1b[0m\x7f",
  "\x85\x9f\u2028\u2029\ufeff\ufffe\uffff",
  "é 😀",
  "",
  " # no comment: {a: 1} & *x !y | > ' % @ `",
  "yes",
  "1e3",
  "null",
]


def expanded(text):
  """What Kubernetes makes of an argument where no variable is defined."""
  return re.sub(r"\$\$|\$\([^)]*\)", lambda m: m[0].replace("$$", "$"), text)


def test_every_argument_arrives_as_it_was(jobset):
  (container,) = pod_of(jobset(command=HOSTILE))["containers"]
  assert all("$(" not in a.replace("$$", "") for a in container["args"])
  assert [expanded(a) for a in container["args"]] == HOSTILE


def test_a_name_that_yaml_takes_for_something_else_stays_a_name(jobset):
  whole = jobset(name="yes", service_account="123", bucket="1e3")
  assert whole["metadata"]["name"] == "yes"
  assert pod_of(whole)["serviceAccountName"] == "123"


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"name": "Acid"}, "--name is 'Acid'"),
    ({"name": "a\nb: c"}, "--name is 'a"),
    ({"image": "x:1\n  y"}, "--image is 'x:1"),
    ({"topology": "4"}, "--topology is '4'"),
    ({"topology": "4x8"}, "has 32 chips, but --hosts 4"),
    ({"hosts": "0"}, "--hosts is '0'"),
    ({"bucket": "gs://lake"}, "without gs://"),
    ({"max_restarts": "-1"}, "--max-restarts is '-1'"),
    ({"speed": "9"}, "'--speed' is not known"),
    ({"image": None, "hosts": None}, "--hosts is missing"),
    ({"command": ()}, "the command is missing"),
    ({"command": ("--workdir=gs://b/x",)}, "workdir 'gs://b/x' is a bucket"),
    ({"command": ("--workdir", "gs://b/x")}, "workdir 'gs://b/x' is a bucket"),
  ],
)
def test_wrong_arguments_are_refused_by_name(gke, tmp_path, changes, words):
  done = gke(**changes)
  assert done.returncode == 2
  assert words in done.stderr
  assert not done.stdout and not (tmp_path / "input").exists()


def test_without_dry_run_it_is_applied(gke, tmp_path):
  done = gke("--namespace", "vision")
  assert done.returncode == 0, done.stderr
  arguments = shlex.split((tmp_path / "arguments").read_text())
  assert arguments == ["apply", "--namespace=vision", "--filename=-"]
  assert (tmp_path / "input").read_text() == gke("--dry-run").stdout
  assert "kubectl delete jobset --namespace=vision acid" in done.stderr


def test_the_template_is_yaml_and_all_of_it_is_filled_in(repository):
  text = (repository / "launch" / "gke.yaml").read_text()
  assert yaml.safe_load(text)["kind"] == "JobSet"
  filled = set(re.findall(r"\$\{([A-Z_]+)\}", text))
  script = (repository / "launch" / "gke.sh").read_text()
  assert all(re.search(rf"\b{word}\b", script) for word in filled)
