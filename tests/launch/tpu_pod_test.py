"""launch/tpu_pod.sh against a stand-in for gcloud that plays a TPU VM.

The stand-in writes down its arguments. It copies files into one folder a worker
and runs ssh commands there, by `bash -c` as a worker would; in the place of the
trainer stands a script that exits as the test says.
"""

import ast
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

TOOLS = """
awk bash cat chmod chown cmp cp cut date dirname env git grep gzip head id ln
mkdir mktemp mv ps rm sed setsid sleep sort tail tar touch umount uname
"""

# It is called some ten times a test, and imports little so as to start quickly.
GCLOUD = r"""
import os, sys

os.chdir(os.environ["PLAY"])
checkout = os.environ["PWD"]
args = sys.argv[1:]
with open("calls", "a") as f:
  f.write(repr(args) + "\n")
verb, rest = args[3], args[4:]
workers = sorted(x for x in os.listdir() if x.startswith("w-"))


def fail(message, code=1):
  print(message, file=sys.stderr)
  sys.exit(code)


def states():
  return open("state").read().split() if os.path.exists("state") else []


def describe():
  now, *later = states() or [None]
  if now is None:
    fail("ERROR: NOT_FOUND: Resource was not found")
  if later:
    open("state", "w").write(" ".join(later))
  print(now)


def create():
  if os.path.exists("stockout"):
    os.remove("stockout")
    fail("ERROR: no capacity")
  for worker in workers:
    os.system(f"rm -rf {worker} && mkdir {worker}")
  open("state", "w").write("READY")


def scp():
  for file in [a for a in rest if not a.startswith("--")][:-1]:
    for worker in workers:
      with open(os.path.join(checkout, file), "rb") as source:
        content = source.read()
      with open(os.path.join(worker, os.path.basename(file)), "wb") as f:
        f.write(content)


def begin(worker, command):
  process = os.fork()
  if not process:
    os.chdir(worker)
    home = {"HOME": os.getcwd(), "HOSTNAME": "t1v-" + worker}
    os.execvpe("bash", ["bash", "-c", command], os.environ | home)
  return process


def ssh():
  (command,) = [a.split("=", 1)[1] for a in rest if a.startswith("--command=")]
  (worker,) = [a.split("=", 1)[1] for a in rest if a.startswith("--worker=")]
  chosen = workers if worker == "all" else [workers[int(worker)]]
  running = [begin(w, command) for w in chosen]
  codes = [os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in running]
  if states() != ["READY"]:
    sys.exit(255)
  sys.exit(next((c for c in codes if c), 0))


def delete():
  os.remove("state")


globals()[verb]()
"""

# Makes an environment whose python is the script below.
UV = """#!/usr/bin/env bash
echo "$*" >>"$PLAY/uv"
case "$1 $2" in
  "venv --quiet") mkdir -p "$5/bin"; cp "$PLAY/trainer" "$5/bin/python" ;;
  "pip freeze") cat "$PLAY/freeze" ;;
esac
"""

# Exits with the next word of its worker's line-up; GONE takes the VM away.
TRAINER = r"""#!/usr/bin/env bash
printf '%s\0' "$@" >"$HOME/arguments"
echo started >>"$HOME/events"
words="$PLAY/words-${HOSTNAME##*-}"
word="$(head -n 1 "$words")"
sed -i 1d "$words"
echo "step 1, then ${word:-0}"
case "$word" in
  hang)
    trap 'echo saved >>"$HOME/events"; exit 75' TERM
    while :; do sleep 0.05; done
    ;;
  gone) echo PREEMPTED >"$PLAY/state"; exit 1 ;;
esac
exit "${word:-0}"
"""


def program(path, text):
  path.write_text(text)
  path.chmod(0o755)


@pytest.fixture(scope="module")
def checkout(repository, tmp_path_factory):
  """A small checkout with the launchers and one commit."""
  if not shutil.which("git"):
    pytest.skip("git is not here")
  root = tmp_path_factory.mktemp("checkout")
  (root / "launch").mkdir()
  for name in ("tpu_pod.sh", "tpu_worker.sh", "restart.sh"):
    shutil.copy(repository / "launch" / name, root / "launch")
  (root / "setup.py").write_text("# stands for the package\n")
  git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-C", str(root)]
  subprocess.run([*git, "init", "-q"], check=True)
  subprocess.run([*git, "add", "."], check=True)
  subprocess.run([*git, "commit", "-q", "-m", "all"], check=True)
  return root


class Play:
  """A TPU VM that is played, and the launcher."""

  def __init__(self, root, checkout, workers=1):
    self.root, self.checkout, self.bin = root, checkout, root / "bin"
    self.bin.mkdir()
    for tool in TOOLS.split():
      if found := shutil.which(tool):
        (self.bin / tool).symlink_to(found)
    (root / "gcloud.py").write_text(GCLOUD)
    gcloud = shlex.join([sys.executable, "-IS", str(root / "gcloud.py")])
    program(self.bin / "gcloud", f'#!/bin/sh\nexec {gcloud} "$@"\n')
    program(self.bin / "uv", UV)
    program(root / "trainer", TRAINER)
    program(self.bin / "sudo", '#!/bin/sh\nexec "$@"\n')
    program(self.bin / "findmnt", '#!/bin/sh\ncat "$PLAY/mounted"\n')
    mount = '#!/bin/sh\necho "$@" >>"$PLAY/gcsfuse"\necho lake >"$PLAY/mounted"'
    program(self.bin / "gcsfuse", mount + "\n")
    (root / "mounted").touch()
    (root / "tmp").mkdir()
    self.homes = [root / f"w-{i}" for i in range(workers)]
    for i, home in enumerate(self.homes):
      home.mkdir()
      self.words(i)

  def words(self, worker, *words):
    text = "".join(f"{word}\n" for word in words)
    (self.root / f"words-{worker}").write_text(text)

  def state(self, *states):
    (self.root / "state").write_text("\n".join(states))

  @property
  def env(self):
    return {
      "PATH": str(self.bin),
      "HOME": str(self.root),
      "PLAY": str(self.root),
      "TMPDIR": str(self.root / "tmp"),
      "ACED_RESTART_PAUSE": "0",
      "ACED_POLL": "0",
      "ACED_MOUNT": str(self.root / "mount"),
      "LC_ALL": "C.UTF-8",
    }

  def command(self, *args):
    return [str(self.checkout / "launch" / "tpu_pod.sh"), *args]

  def __call__(self, *args):
    return subprocess.run(
      self.command(*args),
      env=self.env,
      capture_output=True,
      text=True,
      timeout=60,
    )

  def train(self, *args, command=("-m", "aced.train", "--workdir=/mnt/x")):
    return self(*VM, "--type=v5litepod-8", *args, "--", *command)

  def calls(self):
    path = self.root / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    return [ast.literal_eval(line) for line in lines]

  def verbs(self):
    """The verbs of the calls; for ssh, what the worker is asked to do."""
    verbs = []
    for call in self.calls():
      command = [a for a in call if a.startswith("--command=bash tpu_worker")]
      verbs.append(command[0].split()[2] if command else call[3])
    return verbs

  def events(self, worker=0):
    path = self.homes[worker] / "events"
    return path.read_text().split() if path.exists() else []


VM = ("--name", "acid", "--zone=us-west4-a")
PREPARE = ["scp", "stop", "install"]


@pytest.fixture
def play(checkout, tmp_path):
  return Play(tmp_path, checkout)


@pytest.fixture
def two(checkout, tmp_path):
  return Play(tmp_path, checkout, workers=2)


def test_a_new_vm_is_made_and_prepared_used_and_deleted(two):
  done = two.train("--spot", "--project=p", "--bucket=lake", "--delete")
  assert done.returncode == 0, done.stderr
  where = ["--zone=us-west4-a", "--project=p"]
  options = ["BatchMode=yes", "ServerAliveInterval=30", "ServerAliveCountMax=4"]
  on_all = ["ssh", "acid", *where, "--worker=all", "--quiet"]
  on_all += [f"--ssh-flag=-o{o}" for o in options]
  calls = two.calls()
  assert all(c[:3] == ["compute", "tpus", "tpu-vm"] for c in calls)
  calls = [c[3:] for c in calls]
  commit = calls[5][-1].split()[3]
  scratch = pathlib.Path(calls[3][2]).parent
  describe = ["describe", "acid", "--format=value(state)", *where]
  create = ["--accelerator-type=v5litepod-8", "--version=v2-alpha-tpuv5-lite"]
  copied = [f"{scratch}/aced-{commit}.{x}" for x in ("tar.gz", "txt")]
  key = calls[7][-1].split()[3]
  arguments = "-m aced.train --workdir=/mnt/x"
  assert calls == [
    describe,
    ["create", "acid", *where, *create, "--spot", "--quiet"],
    describe,
    [
      *("scp", "launch/tpu_worker.sh", *copied, "acid:", *where),
      *("--worker=all", "--quiet", *(f"--scp-flag=-o{o}" for o in options)),
    ],
    [*on_all, "--command=bash tpu_worker.sh stop"],
    [*on_all, f"--command=bash tpu_worker.sh install {commit} 3.11"],
    [*on_all, "--command=bash tpu_worker.sh mount lake"],
    [
      *on_all,
      f"--command=bash tpu_worker.sh run {key} {commit} {arguments}",
    ],
    ["delete", "acid", *where, "--quiet"],
  ]
  assert not scratch.exists()
  for worker, home in enumerate(two.homes):
    assert f"w{worker}| step 1" in done.stdout
    (log,) = (home / "aced" / "logs").iterdir()
    assert log.read_text() == "step 1, then 0\n"


def test_a_vm_that_is_ready_is_used_again_and_installed_once(play):
  assert play.train().returncode == 0
  again = play.train()
  assert again.returncode == 0
  assert play.verbs() == [
    *("describe", "create", "describe", *PREPARE, "run"),
    *("describe", *PREPARE, "run"),
  ]
  assert "is already installed" in again.stdout
  installs = (play.root / "uv").read_text().splitlines()
  assert [line.split()[:2] for line in installs] == [
    ["venv", "--quiet"],
    ["pip", "install"],
  ]
  assert installs[1].endswith("[tpu]")


@pytest.mark.parametrize("state", ["PREEMPTED", "TERMINATED", "SUSPENDED"])
def test_a_vm_that_was_taken_away_is_made_anew(play, state):
  play.state(state)
  assert play.train().returncode == 0
  start = ["describe", "delete", "describe", "create", "describe"]
  assert play.verbs() == [*start, *PREPARE, "run"]


def test_a_vm_that_is_being_made_is_waited_for(play):
  play.state("CREATING", "CREATING", "READY")
  done = play.train()
  assert done.returncode == 0
  assert play.verbs() == ["describe"] * 3 + [*PREPARE, "run"]
  assert done.stderr.count("waiting: acid is CREATING") == 1


def test_a_vm_that_someone_stopped_is_left_alone(play):
  play.state("STOPPED")
  done = play.train("--delete")
  assert done.returncode == 1
  assert play.verbs() == ["describe"]
  assert "acid is STOPPED" in done.stderr


@pytest.mark.parametrize("code", [1, 2, 130])
def test_what_another_try_would_not_help_is_not_tried_again(play, code):
  play.words(0, code, 0)
  assert play.train().returncode == code
  assert play.verbs().count("run") == 1


@pytest.mark.parametrize("code", [75, 137])
def test_a_training_that_stopped_goes_on(play, code):
  play.words(0, code, 0)
  done = play.train()
  assert done.returncode == 0, done.stderr
  assert play.verbs()[3:] == [*PREPARE, "run", "describe", *PREPARE, "run"]
  first, second = [c for c in play.calls() if "tpu_worker.sh run" in c[-1]]
  assert first[-1].split()[4:] == second[-1].split()[4:]


def test_after_preemption_all_is_made_and_installed_anew(play):
  play.words(0, "gone", 0)
  done = play.train()
  assert done.returncode == 0, done.stderr
  again = ["describe", "delete", "describe", "create", "describe"]
  # The trainer's 1 alone would end it: whether the VM is READY is asked first.
  verbs = [*PREPARE, "run", "describe", *again, *PREPARE, "run"]
  assert play.verbs()[3:] == verbs
  assert (play.root / "uv").read_text().count("venv --quiet") == 2


def test_a_vm_that_cannot_be_had_at_once_again_is_tried_for(play):
  play.words(0, "gone", 0)
  play.state("READY")
  (play.root / "stockout").touch()
  done = play.train()
  assert done.returncode == 0, done.stderr
  assert play.verbs().count("create") == 2
  assert "the VM acid could not be had" in done.stderr


def test_a_vm_that_cannot_be_had_at_first_is_an_error(play):
  (play.root / "stockout").touch()
  assert play.train("--delete").returncode == 1
  assert play.verbs() == ["describe", "create"]


def test_restarts_have_an_end(play):
  play.words(0, 75, 75, 75, 0)
  done = play.train("--max-restarts", "2")
  assert done.returncode == 75
  assert play.verbs().count("run") == 3
  assert "--max-restarts" in done.stderr


def test_a_worker_with_wrong_input_counts_more_than_one_that_lost_it(two):
  two.words(0, 75, 0)
  two.words(1, 1, 0)
  assert two.train().returncode == 1
  assert two.verbs().count("run") == 1


def test_the_vm_is_deleted_after_a_failure_too(play):
  play.words(0, 1)
  assert play.train("--delete").returncode == 1
  assert play.verbs()[-1] == "delete"


HOSTILE = [
  "--config.a=('a photo of {}', 'the $HOME')",
  'say "$(touch pwned)" `id` \\ \\\\',
  "it's; rm -rf $x & | > < * ? ~ !",
  "",
  "two\nlines\ttab",
  "--config.b=é😀",
  "-- --",
]


def test_every_argument_arrives_as_it_was(play):
  assert play.train(command=HOSTILE).returncode == 0
  arguments = (play.homes[0] / "arguments").read_text().split("\0")[:-1]
  assert arguments == HOSTILE


def test_a_dry_run_prints_what_a_shell_reads_and_runs_nothing(play):
  (play.bin / "gcloud").unlink()
  done = play.train(
    "--bucket=lake", "--delete", "--dry-run", command=HOSTILE[:3]
  )
  assert done.returncode == 0, done.stderr
  text = [x for x in done.stdout.splitlines() if x and x[0] != "#"]
  lines = [shlex.split(line) for line in text]
  assert {line[0] for line in lines} == {"git", "pip", "gcloud"}
  verbs = [line[4] for line in lines if line[0] == "gcloud"]
  assert verbs == ["describe", "create", "scp", *["ssh"] * 4, "delete"]
  run = lines[-2][-1].removeprefix("--command=")
  assert shlex.split(run)[5:] == HOSTILE[:3]
  assert not play.calls()
  assert not list((play.root / "tmp").iterdir())


def test_all_that_is_wrong_with_the_arguments_is_named(play):
  done = play("--zone", "z", "--speed", "9", "--max-restarts", "many")
  assert done.returncode == 2
  for words in (
    "--name is missing",
    "--type is missing",
    "'--speed' is not known",
    "--max-restarts is 'many'",
    "the command is missing",
  ):
    assert words in done.stderr
  assert "--version is missing" in play.train("--type=v9-8").stderr
  assert not play.calls()


@pytest.mark.parametrize("word", ["--workdir=gs://b/x", "--workdir gs://b/x"])
def test_a_bucket_as_workdir_is_refused_by_name(play, word):
  done = play.train(command=("-m", "aced.train", *word.split()))
  assert done.returncode == 2
  assert "'gs://b/x'" in done.stderr and "--bucket" in done.stderr
  assert not play.calls()


def test_uncommitted_changes_are_named_and_refused(play, tmp_path):
  play.checkout = shutil.copytree(play.checkout, tmp_path / "dirty")
  (play.checkout / "setup.py").write_text("# changed\n")
  (play.checkout / "new.py").touch()
  done = play.train()
  assert done.returncode == 2
  assert " M setup.py" in done.stderr and "?? new.py" in done.stderr
  assert not play.calls()
  assert play.train("--allow-dirty").returncode == 0
  (code,) = (play.homes[0] / "aced").glob("*/setup.py")
  assert "stands for" in code.read_text()


def test_an_unknown_commit_is_named(play):
  done = play.train("--commit", "nowhere")
  assert done.returncode == 2 and "'nowhere'" in done.stderr


def test_packages_have_the_versions_that_are_installed_here(play, tmp_path):
  play.checkout = shutil.copytree(play.checkout, tmp_path / "with_venv")
  python = play.checkout / ".venv" / "bin" / "python"
  python.parent.mkdir(parents=True)
  program(python, "#!/bin/sh\necho 3.12\n")
  (play.checkout / ".gitignore").write_text(".venv\n")
  frozen = "-e file:///x\naced==1\njax==0.10.2\ntorch==2.0+cpu\na @ file:///y\n"
  (play.root / "freeze").write_text(frozen)
  assert play.train("--allow-dirty").returncode == 0
  (pins,) = play.homes[0].glob("aced-*.txt")
  assert pins.read_text() == "jax==0.10.2\n"
  uv = (play.root / "uv").read_text()
  assert f"--constraint {pins}" in uv and "--python 3.12" in uv


def test_the_bucket_is_mounted_once_and_seen_at_once(play):
  for _ in range(2):
    assert play.train("--bucket=lake").returncode == 0
  (line,) = (play.root / "gcsfuse").read_text().splitlines()
  assert "--rename-dir-limit" in line and "--metadata-cache-ttl-secs=0" in line
  assert line.endswith(f"lake {play.root}/mount")


def test_the_setup_command_runs_before_installing(play):
  assert play.train("--setup", 'echo "a  b" >"$HOME/set up"').returncode == 0
  assert (play.homes[0] / "set up").read_text() == "a  b\n"
  assert play.verbs()[3:7] == ["scp", "stop", "ssh", "install"]


def started(play, process=None):
  deadline = time.monotonic() + 20
  while "started" not in play.events():
    assert process is None or process.poll() is None
    assert time.monotonic() < deadline
    time.sleep(0.02)


def begin(play, *args, quiet=False):
  output = subprocess.DEVNULL if quiet else subprocess.PIPE
  process = subprocess.Popen(
    play.command(*VM, "--type=v5litepod-8", *args, "--", "x"),
    env=play.env,
    stdout=output,
    stderr=output,
    text=True,
  )
  started(play, process)
  return process


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_an_interruption_is_passed_on_and_the_vm_kept(play, name):
  play.words(0, "hang")
  process = begin(play, "--delete")
  process.send_signal(getattr(signal, name))
  out, err = process.communicate(timeout=30)
  assert process.returncode == 128 + getattr(signal, name)
  assert play.events() == ["started", "saved"]
  assert "w0| aced: exit code 75" in out
  assert "delete" not in play.verbs() and play.verbs()[-1] == "stop"
  assert "To go on" in err
  assert f"launch/tpu_pod.sh {shlex.join(VM)} --type=v5litepod-8" in err
  assert not list((play.root / "tmp").iterdir())


def test_what_an_earlier_call_left_running_ends_first(play):
  play.words(0, "hang", 0)
  with begin(play, quiet=True) as process:
    process.kill()
  done = play.train()
  assert done.returncode == 0
  assert play.events() == ["started", "saved", "started"]
  assert "ending the training that runs here" in done.stdout


def test_a_lost_connection_does_not_end_or_double_the_training(play):
  play.words(0, 0)
  assert play.train().returncode == 0
  play.words(0, "hang")
  home = play.homes[0]
  (home / "events").unlink()
  (commit,) = [p.name for p in (home / "aced").iterdir() if len(p.name) == 12]
  worker = ["bash", "tpu_worker.sh"]
  run = [*worker, "run", "key", commit, "x"]
  env = play.env | {"HOME": str(home), "HOSTNAME": "t1v-w-0"}
  kwargs = {"cwd": home, "env": env}
  with subprocess.Popen(run, **kwargs, stdout=subprocess.PIPE) as lost:
    started(play)
    lost.kill()
  again = subprocess.Popen(run, **kwargs, stdout=subprocess.PIPE, text=True)
  subprocess.run([*worker, "stop"], **kwargs, check=True, capture_output=True)
  out, _ = again.communicate(timeout=30)
  assert again.returncode == 75
  assert "connected again" in out
  assert play.events() == ["started", "saved"]


def test_the_logs_of_the_workers_are_shown(two):
  assert two.train().returncode == 0
  done = two("logs", *VM, "--worker", "1")
  assert done.returncode == 0
  assert done.stdout == "w1| step 1, then 0\n"
  assert two.calls()[-1][-1] == "--command=bash tpu_worker.sh logs"


def test_the_vm_can_be_deleted(play):
  play.state("READY")
  assert play("delete", *VM, "--project=p").returncode == 0
  (call,) = play.calls()
  where = ["--zone=us-west4-a", "--project=p"]
  assert call[3:] == ["delete", "acid", *where, "--quiet"]


def test_without_gcloud_it_says_what_to_install(play):
  (play.bin / "gcloud").unlink()
  done = play.train()
  assert done.returncode == 2 and "gcloud is not on the PATH" in done.stderr
