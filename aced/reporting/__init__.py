"""The page of a run: see `aced.report`."""
