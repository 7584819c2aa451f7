"""Sources of pairs, opened by a short text: `kind:where?option=value`."""

from aced.data.records import Source, SourceError
from aced.data.sources.opening import KINDS, open_source, parse

__all__ = ["KINDS", "Source", "SourceError", "open_source", "parse"]
