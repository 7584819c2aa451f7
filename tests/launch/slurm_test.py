"""launch/slurm.sbatch in a real SLURM: two nodes, both of them this machine.

SLURM and munge are those of Debian (`slurm-wlm`, `munge`). Where they are not
installed and ACED_INSTALL_SLURM=1 is set, root installs them with apt-get.
"""

import contextlib
import getpass
import json
import os
import pathlib
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time

import pytest

from aced.models import saved as saved_lib
from aced.training.tracker import METRICS_FILE, read_jsonl

SCRIPT = "launch/slurm.sbatch"
DAEMONS = ("munged", "slurmctld", "slurmd")
POLICY = pathlib.Path("/usr/sbin/policy-rc.d")

# A trainer that takes no time. It notes each try of each process; told `codes`,
# a process ends with its one; told `save`, it waits for SIGTERM and has nothing
# left to do in the try after that.
STAND_IN = """#!{python}
import json, os, pathlib, signal, sys, time

what, folder, *codes = sys.argv[3:]
process = int(os.environ["SLURM_PROCID"])
folder = pathlib.Path(folder)
signals = []
# SLURM sends two at a preemption without grace time, a millisecond apart.
signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
attempt = os.environ.get("SLURM_RESTART_COUNT", 0)
(folder / f"try-{{attempt}}-{{process}}").write_text(json.dumps(sys.argv[1:]))
saved = folder / f"saved-{{process}}"
if what == "end" or (what == "save" and saved.exists()):
  sys.exit(0)
if what == "codes":
  time.sleep(process)
  sys.exit(int(codes[process]))
deadline = time.monotonic() + 100
while not signals and time.monotonic() < deadline:
  time.sleep(0.05)
time.sleep(1 + process)
if signals:
  saved.touch()
sys.exit(75 if signals else 3)
"""

CONFIGURATION = """
ClusterName=aced
SlurmctldHost=localhost
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={ports[0]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=20
PropagateResourceLimits=NONE
# SLURM wants another host for each node, and uses only the addresses.
NodeName=DEFAULT CPUs={cpus}
NodeName={nodes[0]} NodeHostname={nodes[0]} NodeAddr=127.0.0.1 Port={ports[1]}
NodeName={nodes[1]} NodeHostname={nodes[1]} NodeAddr=127.0.0.1 Port={ports[2]}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=15
PartitionName=hard Nodes=ALL PriorityTier=1 GraceTime=0
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""


def install():
  """Installs SLURM if that is asked for; skips where it cannot be had."""
  if not missing():
    return
  if os.environ.get("ACED_INSTALL_SLURM") != "1":
    pytest.skip(
      f"SLURM is not installed ({', '.join(missing())}); ACED_INSTALL_SLURM=1"
      " lets root install it with apt-get"
    )
  if os.geteuid() or not shutil.which("apt-get"):
    pytest.skip("SLURM can be installed only by root, with apt-get")
  packages = ["slurm-wlm", "munge"]
  with no_services():
    for arguments in (
      ["update"],
      ["install", "-y", "--no-install-recommends", *packages],
    ):
      done = subprocess.run(
        ["apt-get", "-q", *arguments],
        env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
        capture_output=True,
        text=True,
        timeout=600,
      )
      if done.returncode:
        pytest.skip(f"apt-get {arguments[0]} failed: {done.stderr[-500:]}")
  assert not missing(), f"apt-get installed no {missing()}"


def missing():
  """What of SLURM is not installed."""
  path = os.environ.get("PATH", "") + ":/usr/sbin"
  programs = (*DAEMONS, "sbatch", "srun", "scontrol")
  return [name for name in programs if not shutil.which(name, path=path)]


@contextlib.contextmanager
def no_services():
  """Packages that are installed start no service."""
  ours = not POLICY.exists()
  if ours:
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
  try:
    yield
  finally:
    if ours:
      POLICY.unlink()


def free_ports(count):
  with contextlib.ExitStack() as stack:
    sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
    for s in sockets:
      s.bind(("127.0.0.1", 0))
    return [s.getsockname()[1] for s in sockets]


class Cluster:
  """A SLURM cluster in a folder: munged, slurmctld and two slurmd."""

  def __init__(self, folder, repository):
    self.folder, self.repository = folder, repository
    self.running = []
    # JAX finds the first node by its name, which must be one of this machine.
    self.nodes = (socket.gethostname().split(".")[0], "zz-second")
    self.environ = {
      name: value
      for name, value in os.environ.items()
      if not name.startswith(("SLURM", "SBATCH", "JAX", "XLA", "ACED"))
    } | {
      "SLURM_CONF": str(folder / "slurm.conf"),
      "PATH": os.environ["PATH"] + ":/usr/sbin",
      "JAX_PLATFORMS": "cpu",
      "JAX_NUM_CPU_DEVICES": "1",
    }

  def start(self):
    """Starts the daemons; returns once both nodes are idle."""
    for name in ("state", *(f"spool-{node}" for node in self.nodes)):
      (self.folder / name).mkdir()
    key = self.folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    (self.folder / "slurm.conf").write_text(
      CONFIGURATION.format(
        folder=self.folder,
        user=getpass.getuser(),
        nodes=self.nodes,
        ports=free_ports(3),
        cpus=os.cpu_count(),
      )
    )
    munge = {
      "key-file": key,
      "socket": self.folder / "munge.socket",
      "pid-file": self.folder / "munged.pid",
      "log-file": self.folder / "munged.log",
      "seed-file": self.folder / "munged.seed",
    }
    self.daemon(
      "munged",
      "--force",
      "--foreground",
      "--num-threads=2",
      *(f"--{name}={path}" for name, path in munge.items()),
    )
    self.until(munge["socket"].exists, "munged to listen", 20)
    self.daemon("slurmctld", "-D", "-c")
    for node in self.nodes:
      self.daemon("slurmd", "-D", "-N", node, name=f"slurmd-{node}")
    self.until(
      lambda: self.ask("sinfo", "-h", "-o", "%D %t", "-p", "low") == "2 idle",
      "two idle nodes",
      40,
    )

  def daemon(self, *command, name=None):
    with (self.folder / f"{name or command[0]}.out").open("wb") as out:
      process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=out,
        env=self.environ,
        cwd=self.folder,
        start_new_session=True,
      )
    self.running.append(process)

  def stop(self):
    """Stops the daemons, and all that they have started."""
    for process in reversed(self.running):
      process.terminate()
    for process in self.running:
      with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(15)
    # Shells and programs of jobs are marked by the same environment.
    deadline = time.monotonic() + 15
    while self.strays() and time.monotonic() < deadline:
      for pid in self.strays():
        with contextlib.suppress(ProcessLookupError):
          os.kill(pid, signal.SIGKILL)
      for process in self.running:
        process.poll()
      time.sleep(0.1)
    assert not self.strays(), "processes of the cluster could not be stopped"

  def strays(self):
    """Processes that belong to this cluster."""
    mark = f"SLURM_CONF={self.environ['SLURM_CONF']}".encode()
    found = []
    for folder in pathlib.Path("/proc").iterdir():
      if folder.name.isdigit() and int(folder.name) != os.getpid():
        with contextlib.suppress(OSError):
          if mark in (folder / "environ").read_bytes().split(b"\0"):
            found.append(int(folder.name))
    return found

  def ask(self, *command, check=False):
    """What a command of SLURM prints."""
    done = subprocess.run(
      command, env=self.environ, capture_output=True, text=True, timeout=60
    )
    if check and done.returncode:
      self.fail(f"{command} failed: {done.stderr}")
    return done.stdout.strip()

  def submit(self, folder, *arguments, options=(), **variables):
    """Submits the script; returns a `Job`."""
    done = subprocess.run(
      [
        "sbatch",
        "--parsable",
        f"--output={folder}/log",
        *options,
        SCRIPT,
        *map(str, arguments),
      ],
      env=self.environ | variables,
      cwd=self.repository,
      capture_output=True,
      text=True,
      timeout=60,
    )
    if done.returncode:
      self.fail(f"sbatch failed: {done.stderr}")
    return Job(self, done.stdout.strip(), folder / "log")

  def until(self, condition, what, seconds):
    """Waits; fails with the logs of the daemons when it takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
      for process in self.running:
        if process.poll() is not None:
          self.fail(f"{process.args[0]} ended by itself")
      if time.monotonic() > deadline:
        self.fail(f"waited {seconds} s for {what}")
      time.sleep(0.2)

  def fail(self, message):
    for path in (*self.folder.glob("*.out"), self.folder / "munged.log"):
      if path.exists():
        message += f"\n== {path.name}\n{path.read_text()[-3000:]}"
    pytest.fail(message)


class Job:
  """A job that was submitted."""

  def __init__(self, cluster, number, log):
    self.cluster, self.number, self.log = cluster, number, log

  def shown(self):
    """What SLURM knows of it, by name."""
    text = self.cluster.ask(
      "scontrol", "--oneliner", "show", "job", self.number
    )
    return dict(part.split("=", 1) for part in text.split() if "=" in part)

  def ends(self, seconds=60):
    """Waits until it ended for good; returns state, exit code and restarts."""
    hastened = {"0"}

    def ended():
      shown = self.shown()
      state, restarts = shown.get("JobState"), shown.get("Restarts")
      if state == "PENDING" and restarts not in hastened:
        # SLURM lets it wait for two minutes. It wants a second at least.
        hastened.add(restarts)
        self.cluster.ask(
          "scontrol", "update", f"JobId={self.number}", "StartTime=now+2seconds"
        )
      return state in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")

    self.wait(ended, "the end of the job", seconds)
    shown = self.shown()
    code = int(shown["ExitCode"].split(":")[0])
    return shown["JobState"], code, int(shown["Restarts"])

  def wait(self, condition, what, seconds=30):
    try:
      self.cluster.until(condition, what, seconds)
    except pytest.fail.Exception as error:
      text = self.log.read_text() if self.log.exists() else "none"
      pytest.fail(f"{error}\n== job {self.shown()}\n== its log\n{text}")


@pytest.fixture(scope="module")
def daemons(tmp_path_factory, repository):
  install()
  made = Cluster(tmp_path_factory.mktemp("slurm"), repository)
  try:
    made.start()
    yield made
  finally:
    made.stop()


@pytest.fixture
def cluster(daemons):
  """The cluster, without jobs before and after."""
  yield daemons
  daemons.ask("scancel", f"--user={getpass.getuser()}", "--quiet")
  daemons.until(lambda: not daemons.ask("squeue", "-h"), "an empty queue", 60)


@pytest.fixture
def stand_in(tmp_path):
  """The settings that put a program without JAX in the place of Python."""
  path = tmp_path / "python"
  path.write_text(STAND_IN.format(python=sys.executable))
  path.chmod(path.stat().st_mode | stat.S_IXUSR)
  return {"PYTHON": str(path)}


@pytest.mark.slow
def test_a_job_of_two_nodes_gets_its_arguments(cluster, stand_in, tmp_path):
  odd = ["a b", "it's", '"$HOME"', "*", "", "--x=;ls"]
  job = cluster.submit(
    tmp_path, "end", tmp_path, *odd, options=["--nodes=2"], **stand_in
  )
  assert job.ends() == ("COMPLETED", 0, 0)
  given = json.loads((tmp_path / "try-0-1").read_text())
  assert given == ["-m", "aced.train", "end", str(tmp_path), *odd]


def tried(folder, number, processes=2):
  """Whether so many processes have come so far in a try."""
  return lambda: len(list(folder.glob(f"try-{number}-*"))) == processes


def saved_and_went_on(job, folder):
  """Asserts that all processes saved, and came to their end in the next try."""
  assert job.ends() == ("COMPLETED", 0, 1)
  text = job.log.read_text()
  assert sorted(path.name for path in folder.glob("saved-*")) == [
    "saved-0",
    "saved-1",
  ], text
  assert tried(folder, 1)() and tried(folder, 2, 0)(), text
  return text


@pytest.mark.slow
def test_sigterm_saves_and_the_job_goes_on(cluster, stand_in, tmp_path):
  job = cluster.submit(
    tmp_path, "save", tmp_path, options=["--nodes=2"], **stand_in
  )
  job.wait(tried(tmp_path, 0), "the first try")
  cluster.ask("scancel", "--signal=TERM", job.number, check=True)
  log = saved_and_went_on(job, tmp_path)
  assert "exit code 75; back into the queue (restart 1)" in log


@pytest.mark.slow
@pytest.mark.parametrize("how", ["requeued", "preempted", "warned"])
def test_what_slurm_requeues_is_not_requeued_twice(
  cluster, stand_in, tmp_path, how
):
  """By `scontrol requeue`, by preemption without and with a grace time."""
  partition = {"requeued": "low", "preempted": "hard", "warned": "low"}[how]
  job = cluster.submit(
    tmp_path,
    "save",
    tmp_path,
    options=["--nodes=2", f"--partition={partition}"],
    **stand_in,
  )
  job.wait(tried(tmp_path, 0), "the first try")
  if how == "requeued":
    cluster.ask("scontrol", "requeue", job.number, check=True)
  else:
    other = tmp_path / "other"
    other.mkdir()
    higher = cluster.submit(
      other, "end", other, options=["--partition=high"], **stand_in
    )
    assert higher.ends() == ("COMPLETED", 0, 0)
  saved_and_went_on(job, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("codes", "restarts"), [((1, 0), 0), ((75, 1), 0), ((137, 75), 1)]
)
def test_only_what_may_go_on_is_requeued(
  cluster, stand_in, tmp_path, codes, restarts
):
  job = cluster.submit(
    tmp_path,
    "codes",
    tmp_path,
    *codes,
    options=["--nodes=2"],
    ACED_MAX_RESTARTS="1",
    **stand_in,
  )
  code = 137 if restarts else 1
  assert job.ends() == ("FAILED", code, restarts)
  said = "ACED_MAX_RESTARTS=1 allows no more" in job.log.read_text()
  assert said == bool(restarts)


@pytest.mark.slow
def test_a_job_that_is_cancelled_stays_so(cluster, stand_in, tmp_path):
  job = cluster.submit(tmp_path, "save", tmp_path, **stand_in)
  job.wait(tried(tmp_path, 0, 1), "the first try")
  cluster.ask("scancel", job.number, check=True)
  assert job.ends()[::2] == ("CANCELLED", 0)
  job.wait(lambda: "SLURM has ended" in job.log.read_text(), "its last word")
  assert (tmp_path / "saved-0").exists()


@pytest.mark.slow
def test_a_run_of_two_nodes_saves_goes_on_and_ends(cluster, tmp_path):
  """The trainer itself: stopped by SIGTERM, requeued, and at its end."""
  run = tmp_path / "run"
  metrics = run / METRICS_FILE
  steps = 300  # So many that it is not done before it is stopped.
  job = cluster.submit(
    tmp_path,
    "--config=configs/iid.py:smoke",
    f"--workdir={run}",
    f"--config.total_steps={steps}",
    "--config.evals={}",
    "--config.checkpoint.best=",
    f"--config.checkpoint.every_steps={steps}",
    "--config.log.every_steps=1",
    "--config.log.progress=False",
    options=["--nodes=2"],
  )
  job.wait(
    lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 2,
    "the first steps",
    90,
  )
  cluster.ask("scancel", "--signal=TERM", job.number, check=True)
  assert job.ends(120) == ("COMPLETED", 0, 1)
  text = job.log.read_text()
  assert "exit code 75; back into the queue (restart 1)" in text
  assert "going on from the checkpoint at step" in text
  assert [line["step"] for line in read_jsonl(metrics)] == [
    *range(1, steps + 1)
  ]
  assert saved_lib.find_checkpoint(str(run))[1] == steps


@pytest.fixture
def by_hand(repository):
  """Runs the script without SLURM; returns exit code, output and errors."""

  def by_hand(*arguments, **variables):
    environ = {
      name: value
      for name, value in os.environ.items()
      if not name.startswith(("SLURM", "ACED"))
    }
    done = subprocess.run(
      ["bash", str(repository / SCRIPT), *arguments],
      env=environ | variables,
      cwd="/",
      capture_output=True,
      text=True,
      timeout=30,
    )
    return done.returncode, done.stdout, done.stderr

  return by_hand


def test_a_dry_run_prints_what_a_shell_reads(by_hand, repository):
  odd = ["a b", "it's", '"$HOME"', "*", "", "--x=;ls"]
  code, out, err = by_hand("--dry-run", *odd, PYTHON="/some python")
  assert (code, err) == (0, "")
  first, second, note = out.splitlines()
  assert first == f"cd {repository}"
  words = shlex.split(second)
  assert words[0] == "srun"
  where = words.index("/some python")
  assert words[where:] == ["/some python", "-m", "aced.train", *odd]
  assert "--kill-on-bad-exit=0" in words and "--wait=150" in words
  assert "up to 100 restarts" in note


@pytest.mark.parametrize(
  ("arguments", "variables", "message"),
  [
    ((), {}, "no arguments of the trainer"),
    (("--dry-run",), {}, "no arguments of the trainer"),
    (("--config=x",), {}, "not within a job"),
    (("--config=x",), {"ACED_HOME": "/none"}, "no checkout of aced at '/none'"),
    (("x",), {"SLURM_SUBMIT_DIR": "/"}, "Submit the job from the root of the"),
    (("x",), {"ACED_MAX_RESTARTS": "-1"}, "ACED_MAX_RESTARTS is '-1'"),
    (("x",), {"ACED_PEER_SECONDS": "2m"}, "ACED_PEER_SECONDS is '2m'"),
  ],
)
def test_what_is_wrong_is_named(by_hand, arguments, variables, message):
  code, out, err = by_hand(*arguments, **variables)
  assert (code, out) == (2, "")
  assert message in err
