"""launch/local_hosts.sh: what processes are given, and how they end."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from aced.models import saved as saved_lib

SCRIPT = "launch/local_hosts.sh"

# What each process of a stand-in for the trainer does, by its number.
PROGRAM = """
import json, os, pathlib, signal, sys, time

folder = pathlib.Path(sys.argv[1])
number = int(os.environ["JAX_PROCESS_ID"])
do = sys.argv[2:][number]
signals = []
for name in ("SIGTERM", "SIGINT"):
  signal.signal(getattr(signal, name), lambda s, _: signals.append(s))
with open(folder / f"ports-{number}", "a") as f:
  print(os.environ["JAX_COORDINATOR_ADDRESS"].rsplit(":", 1)[1], file=f)
(folder / f"pid-{number}").write_text(str(os.getpid()))
print("starts", flush=True)
deadline = time.monotonic() + 60
while do in ("wait", "hang") and time.monotonic() < deadline:
  if signals and do == "wait":
    print("noted", flush=True)
    time.sleep(1)  # For more signals.
    print("got", *signals, flush=True)
    sys.exit(75)
  time.sleep(0.02)
sys.exit(int(do))
"""


@pytest.fixture
def program(tmp_path):
  path = tmp_path / "program.py"
  path.write_text(PROGRAM)
  return path


@pytest.fixture
def environ():
  """The environment of the tests without what the script sets."""
  kept = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("JAX", "XLA", "ACED", "SLURM"))
  }
  return kept | {"PYTHON": sys.executable}


@pytest.fixture
def run(repository, environ):
  """Runs the script to its end; returns exit code, output and errors."""

  def run(*arguments, seconds=60, **variables):
    done = subprocess.run(
      [str(repository / SCRIPT), *map(str, arguments)],
      env=environ | variables,
      capture_output=True,
      text=True,
      timeout=seconds,
    )
    return done.returncode, done.stdout, done.stderr

  return run


@pytest.fixture
def start(repository, environ, tmp_path):
  """Starts the script; stops what is left of it at the end."""
  running = []

  def start(*arguments, **variables):
    with (tmp_path / "out").open("w") as out:
      process = subprocess.Popen(
        [str(repository / SCRIPT), *map(str, arguments)],
        env=environ | variables,
        stdout=out,
        stderr=out,
        start_new_session=True,
      )
    running.append(process)
    return process

  yield start
  for process in running:
    if process.poll() is None:
      process.terminate()
      try:
        process.wait(5)
      except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
  for path in tmp_path.glob("pid-*"):
    if alive(int(path.read_text())):
      os.kill(int(path.read_text()), signal.SIGKILL)


def alive(pid):
  """Whether a process runs; one that ended and was not waited for does not."""
  try:
    state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1]
  except OSError:
    return False
  return state.split()[0] != "Z"


def until(condition, what, seconds=30):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
    time.sleep(0.02)


def output_when(tmp_path, text, count):
  """Waits until the output has a text so many times."""
  out = tmp_path / "out"
  until(lambda: out.read_text().count(text) >= count, f"{count} x {text!r}")


def test_processes_are_told_of_each_other(run):
  names = "COORDINATOR_ADDRESS NUM_PROCESSES PROCESS_ID PLATFORMS"
  show = (
    "import os; print(*(os.environ['JAX_' + n] for n in"
    f" '{names} NUM_CPU_DEVICES'.split()), os.getcwd())"
  )
  code, out, err = run(3, "--devices", 2, "--", "-c", show)
  assert (code, err) == (0, "")
  where = pathlib.Path(__file__).parents[2]
  lines = sorted(out.splitlines())
  port = re.search(r":(\d+) ", lines[0]).group(1)
  assert lines == [
    f"[{i}] 127.0.0.1:{port} 3 {i} cpu 2 {where}" for i in range(3)
  ]


def test_settings_of_the_caller_are_kept(run):
  show = "import os; print(os.environ['JAX_PLATFORMS'], 'JAX_NUM_CPU_DEVICES'"
  show += " in os.environ, os.environ['JAX_COORDINATOR_ADDRESS'])"
  code, out, _ = run(1, "--port", 4321, "--", "-c", show, JAX_PLATFORMS="cuda")
  assert (code, out) == (0, "[0] cuda False 127.0.0.1:4321\n")


def test_arguments_arrive_as_they_are(run):
  odd = ["a b", "it's", '"$HOME"', "*", "", "--", "--port", "a\nb", ";ls", "é"]
  show = "import json, sys; print(json.dumps(sys.argv[1:]))"
  code, out, _ = run(2, "--", "-c", show, *odd)
  assert code == 0
  for line in out.splitlines():
    assert json.loads(line[len("[0] ") :]) == odd


def test_every_line_has_the_number_of_its_process(run):
  show = (
    "import sys; print('one\\n\\n  two\\\\n', flush=True);"
    "sys.stderr.write('no end')"
  )
  code, out, _ = run(1, "--", "-c", show)
  assert code == 0
  assert out == "[0] one\n[0] \n[0]   two\\n\n[0] no end\n"


def test_what_fails_to_start_is_told(run):
  code, out, err = run(1, "--", "-m", "no_such_module")
  assert code == 1
  assert "No module named no_such_module" in out
  assert "process 0 of 1 ended with exit code 1" in err


@pytest.mark.parametrize(
  ("codes", "expected"),
  [
    ((0, 0, 0), 0),
    ((0, 75, 0), 75),
    ((75, 75, 1), 1),
    ((2, 75, 75), 2),
    ((75, 130, 75), 130),
    ((137, 0, 0), 137),
  ],
)
def test_the_most_telling_exit_code_is_that_of_all(
  run, program, tmp_path, codes, expected
):
  code, _, err = run(len(codes), "--", program, tmp_path, *codes)
  assert code == expected, err


@pytest.mark.parametrize(
  ("codes", "tries", "expected"), [((75, 0), 3, 75), ((0, 0), 1, 0)]
)
def test_all_start_again_where_that_helps(
  run, program, tmp_path, codes, tries, expected
):
  code, out, err = run(2, "--max-restarts", 2, "--", program, tmp_path, *codes)
  assert code == expected
  assert out.count("starts") == 2 * tries
  ports = [(tmp_path / f"ports-{i}").read_text().split() for i in range(2)]
  assert ports[0] == ports[1]
  assert len(set(ports[0])) == tries
  assert err.count("starting again") == tries - 1


def test_a_code_that_forbids_it_is_not_tried_again(run, program, tmp_path):
  code, out, _ = run(2, "--max-restarts", 5, "--", program, tmp_path, 75, 1)
  assert (code, out.count("starts")) == (1, 2)


def test_a_process_that_hangs_is_killed_after_its_time(run, program, tmp_path):
  began = time.monotonic()
  code, out, err = run(
    3,
    "--",
    program,
    tmp_path,
    *("hang", 75, "wait"),
    ACED_PEER_SECONDS="1",
    ACED_KILL_SECONDS="4",
  )
  assert code == 75
  assert 3 <= time.monotonic() - began < 40
  assert f"[2] got {int(signal.SIGTERM)}" in out
  assert "stopping 2 that go on without the others" in err
  assert "process 0 of 3 ended with exit code 137" in err
  assert not alive(int((tmp_path / "pid-0").read_text()))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_reaches_every_process_once(start, program, tmp_path, name):
  number = getattr(signal, name)
  process = start(
    2, "--max-restarts", 3, "--", program, tmp_path, "wait", "wait"
  )
  output_when(tmp_path, "starts", 2)
  # To all of its group, as the keyboard does.
  os.killpg(process.pid, number)
  assert process.wait(30) == 75
  out = (tmp_path / "out").read_text()
  assert out.count("starts") == 2, "nothing starts again after a signal"
  for i in range(2):
    assert f"[{i}] got {int(number)}\n" in out


def test_a_second_signal_is_passed_on_too(start, program, tmp_path):
  process = start(1, "--", program, tmp_path, "wait")
  output_when(tmp_path, "starts", 1)
  process.terminate()
  output_when(tmp_path, "noted", 1)
  process.terminate()
  assert process.wait(30) == 75
  twice = f"[0] got {int(signal.SIGTERM)} {int(signal.SIGTERM)}\n"
  assert twice in (tmp_path / "out").read_text()


def test_a_dry_run_starts_nothing(run, tmp_path):
  made = tmp_path / "made"
  code, out, err = run(
    2,
    "--devices",
    4,
    "--dry-run",
    "--port",
    1234,
    "--",
    "-c",
    f"open('{made}', 'w')",
    "a b",
  )
  assert (code, err) == (0, "")
  assert not made.exists()
  for i, line in enumerate(out.splitlines()):
    assert line.startswith(f"[{i}] env JAX_PLATFORMS=cpu ")
    assert f"JAX_PROCESS_ID={i} JAX_NUM_CPU_DEVICES=4" in line
    command = line[len("[0] ") :]
    # What is printed can be run.
    subprocess.run(["bash", "-c", command], check=True, timeout=30)
    assert made.exists()
    made.unlink()
  assert len(out.splitlines()) == 2


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ((), "the number of processes is missing"),
    (("two", "--", "x"), "the number of processes is 'two'"),
    (("0", "--", "x"), "the number of processes is '0'"),
    (("-1", "--", "x"), "the number of processes is '-1'"),
    (("2",), "no command"),
    (("2", "--"), "no command"),
    (("2", "--device", "3", "--", "x"), "unknown argument '--device'"),
    (("2", "-m", "aced.train"), "unknown argument '-m'"),
    (("2", "--devices"), "--devices lacks its value"),
    (("2", "--devices", "0", "--", "x"), "--devices is '0'"),
    (("2", "--port", "1e3", "--", "x"), "--port is '1e3'"),
    (("2", "--port", "65536", "--", "x"), "--port is '65536'"),
    (("2", "--max-restarts", "--", "x"), "--max-restarts is '--'"),
  ],
)
def test_wrong_arguments_are_named(run, arguments, message):
  code, out, err = run(*arguments)
  assert (code, out) == (2, "")
  assert message in err
  assert len(err.splitlines()) == 1


def test_wrong_settings_are_named(run):
  code, _, err = run(1, "--", "x", ACED_PEER_SECONDS="1.5")
  assert code == 2 and "ACED_PEER_SECONDS is '1.5'" in err
  code, _, err = run(1, "--", "x", PYTHON="/none/python")
  assert code == 2 and "no Python at '/none/python'" in err


@pytest.mark.slow
@pytest.mark.faults  # tests/faults trains two processes already.
def test_two_processes_train(run, tmp_path):
  code, out, err = run(
    2,
    "--devices",
    2,
    "--",
    "-m",
    "aced.train",
    "--config=configs/iid.py:smoke",
    f"--workdir={tmp_path}/run",
    "--config.total_steps=3",
    "--config.log.progress=False",
    seconds=240,
  )
  assert code == 0, out + err
  assert saved_lib.find_checkpoint(f"{tmp_path}/run")[1] == 3
  assert "4 x cpu (cpu), 2 process(es)" in out
