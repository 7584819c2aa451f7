"""Writes one HTML page of a run: what it did, what it cost, what it chose.

    python -m aced.report --workdir runs/acid
    python -m aced.report --workdir runs/acid --output acid.html

The page holds its curves, its cost, its config and a contact sheet of pairs
that curation kept and dropped. It is one file that asks for nothing else, for a
browser without a network. A run writes it at its end as `report.html`, unless
`log.page` is False; this command does so at any time.
"""

import argparse
import os
import pathlib
import sys

import jax
from absl import logging

from aced import files
from aced.reporting.run import run_page

PAGE = "report.html"


def write(
  where: str | os.PathLike, output: str | os.PathLike | None = None
) -> pathlib.Path:
  """Writes the page of a run, whole or not at all.

  Args:
    where: the workdir.
    output: the file; `report.html` in the workdir if None.

  Returns:
    The file.

  Raises:
    WorkdirError: the workdir holds no run of ours.
    ValueError: something in it is damaged.
    OSError: the page cannot be written.
  """
  where = pathlib.Path(where).expanduser()
  path = pathlib.Path(output).expanduser() if output else where / PAGE
  text = run_page(where)
  with files.whole(path) as part:
    part.write_text(text, "utf-8")
  return path


def at_the_end(where: str | os.PathLike) -> None:
  """As `write`, from the first process; a failure costs the run nothing."""
  if jax.process_index() > 0:
    return
  try:
    write(where)
  except Exception as error:  # What was trained is saved, and matters more.
    logging.warning(
      "the page of the run could not be written: %s: %s",
      type(error).__name__,
      error,
    )


def main() -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser(
    prog="python -m aced.report", description=__doc__.split("\n\n")[0]
  )
  parser.add_argument("--workdir", required=True, help="folder of the run")
  parser.add_argument(
    "--output", help="the file; WORKDIR/report.html if left out"
  )
  args = parser.parse_args()
  try:
    print(write(args.workdir, args.output))
  except (ValueError, OSError) as error:
    sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
  main()
