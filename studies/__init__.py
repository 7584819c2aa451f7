"""Studies: when curation helps, and what it costs. See docs/study.md."""
