"""Whether a source is fit to train on: `python -m aced.data check`."""
