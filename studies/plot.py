"""Draws a study: plots, tables in Markdown, and one HTML page.

    python -m studies.plot --workdir runs/study/scenes
    python -m studies.plot --workdir runs/study/scenes \\
        --output docs/study/scenes

Reads `table.csv` and `curves.csv`, so that it works on the tables alone, where
runs are not there any more; then the page has no contact sheet. Writes
`study.html`, `study.md` and a plot (SVG) for every question.
"""

import argparse
import pathlib
import sys

from studies import answers, page, table
from studies.questions import QUESTIONS
from studies.sets import STUDIES


def draw(
  workdir: pathlib.Path, output: pathlib.Path | None = None
) -> list[pathlib.Path]:
  """Writes plots, tables and the page of a study.

  Args:
    workdir: of `studies.run`, or a folder with its two tables.
    output: where they go; the workdir itself if None.

  Returns:
    The files.

  Raises:
    FileNotFoundError: the tables are not there.
    ValueError: they are of no study that is known here.
  """
  rows = table.read(workdir / table.TABLE)
  curves = table.read(workdir / table.CURVES)
  names = {row.get("study") for row in rows}
  if len(names) != 1 or not names <= set(STUDIES):
    raise ValueError(
      f"{workdir / table.TABLE} is of the studies {sorted(map(str, names))};"
      f" expected one of {', '.join(STUDIES)}."
    )
  if all(row["method"] == "reference" for row in rows):
    raise ValueError(f"{workdir / table.TABLE} has no row of a student yet.")
  study, output = STUDIES[names.pop()], output or workdir
  output.mkdir(parents=True, exist_ok=True)
  found = [
    page.Answer(
      name,
      QUESTIONS[name].title,
      groups,
      *page.answer(study, name, groups, rows, curves),
    )
    for name in QUESTIONS
    if len(groups := answers.groups(study, name, rows)) > 1
    and answers.has_own(study, name, groups)
  ]
  claims = answers.claims(study, rows, curves)
  files = {
    "study.html": page.html_page(study, found, claims, rows, curves, workdir),
    "study.md": page.markdown(study, found, claims, rows),
    **{
      name: page.standalone(chart)
      for answer in found
      for name, chart in zip(page.plots(answer), answer.charts, strict=True)
    },
  }
  for name, text in files.items():
    (output / name).write_text(text, "utf-8")
  if output != workdir:
    for name in (table.TABLE, table.CURVES):
      (output / name).write_bytes((workdir / name).read_bytes())
  return [output / name for name in files]


def main() -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser(
    prog="python -m studies.plot", description=__doc__.split("\n\n")[0]
  )
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument(
    "--output", type=pathlib.Path, help="a folder; the workdir by default"
  )
  args = parser.parse_args()
  try:
    for path in draw(args.workdir, args.output):
      print(path)
  except (ValueError, OSError) as error:
    sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
  main()
