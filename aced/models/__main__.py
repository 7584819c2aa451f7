"""`python -m aced.models` prints the table of named models."""

from aced.models.costs import markdown_table

print(markdown_table())
