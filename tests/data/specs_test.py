import pytest

from aced.data.records import SourceError
from aced.data.specs import options_of


def test_options():
  assert options_of("", "x") == {}
  assert options_of("a=1&b=x=y&", "x") == {"a": "1", "b": "x=y"}


@pytest.mark.parametrize("query", ["a", "a=", "a=1&a=2"])
def test_what_is_no_option(query):
  with pytest.raises(SourceError, match="spec: 'a.* must be option=value"):
    options_of(query, "spec", SourceError)
