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


def pytest_collection_modifyitems(config, items):
  if config.getoption("--faults"):
    return
  skip = pytest.mark.skip(reason="one of the long form; run with --faults")
  for item in items:
    if item.get_closest_marker("faults"):
      item.add_marker(skip)


@pytest.fixture
def workdir(whole, request):
  """A workdir beside that of the undisturbed run, for one try."""
  path = whole.with_name(re.sub(r"\W+", "_", request.node.name))
  yield path
  shutil.rmtree(path, ignore_errors=True)
