"""Pages and charts that need no network and no program but a browser."""
