"""How many tries of each fault: a few, or with --faults as many as claimed."""

import re
import shutil

import pytest


def pytest_generate_tests(metafunc):
  tries = metafunc.definition.get_closest_marker("tries")
  if tries and "seed" in metafunc.fixturenames:
    short, long = tries.args
    many = metafunc.config.getoption("--faults")
    metafunc.parametrize("seed", range(long if many else short))


@pytest.fixture
def workdir(whole, request):
  """A workdir beside that of the undisturbed run, for one try."""
  path = whole.with_name(re.sub(r"\W+", "_", request.node.name))
  yield path
  shutil.rmtree(path, ignore_errors=True)
