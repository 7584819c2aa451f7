"""A form of launch/test.sh fails where none of its tests ran.

    pytest -p tests.forms --must-run big_vision

Tests that need what is not there are skipped, and a run of skipped tests alone
would pass having tested nothing.
"""

import pytest


def pytest_addoption(parser):
  parser.addoption(
    "--must-run", metavar="MARK", help="fail unless a test with it has run"
  )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
  report = yield
  mark = item.config.getoption("must_run")
  # A report travels from a worker of xdist to the process that decides.
  report.must_run = bool(mark and item.get_closest_marker(mark))
  return report


class Count:
  """Counts, in the process that decides, and has the last word."""

  def __init__(self, mark):
    self.mark, self.ran = mark, 0

  def pytest_runtest_logreport(self, report):
    ran = report.when == "call" and not report.skipped
    self.ran += ran and getattr(report, "must_run", False)

  @pytest.hookimpl(tryfirst=True)
  def pytest_sessionfinish(self, session):
    none = session.exitstatus in (
      pytest.ExitCode.OK,
      pytest.ExitCode.NO_TESTS_COLLECTED,
    )
    if not self.ran and none:
      session.exitstatus = pytest.ExitCode.TESTS_FAILED

  def pytest_terminal_summary(self, terminalreporter):
    if not self.ran:
      terminalreporter.write_line(
        f"FAILED: no test marked {self.mark} ran; -rs says why each was"
        " skipped.",
        red=True,
      )


def pytest_configure(config):
  mark = config.getoption("must_run")
  decides = not hasattr(config, "workerinput")
  if mark and decides and not config.option.collectonly:
    config.pluginmanager.register(Count(mark))
