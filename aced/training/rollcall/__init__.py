"""Roll call among processes: `call` is its face; companions run `watch`."""
