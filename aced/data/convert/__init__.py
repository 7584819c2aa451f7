"""Writing a source anew in shards: `python -m aced.data convert`."""
