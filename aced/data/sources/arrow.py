"""Values of Arrow as Python has them, however they are stored."""

from typing import Any


def row(table: Any, index: int) -> dict[str, Any]:
  """Returns a row of a `pyarrow.Table`, by the names of its columns.

  A string that is no UTF-8 is bytes; None is what Python has not, such as a
  time in nanoseconds.
  """
  return {name: _value(table[name][index]) for name in table.column_names}


def _value(scalar) -> Any:
  try:
    return scalar.as_py()
  except UnicodeDecodeError:
    return _with_bytes(scalar)
  except (ValueError, OverflowError):
    return None


def _with_bytes(scalar) -> Any:
  """A value with a string in it that is no UTF-8."""
  import pyarrow

  if isinstance(scalar, pyarrow.StructScalar):
    return {field.name: _value(scalar[field.name]) for field in scalar.type}
  if isinstance(scalar, pyarrow.DictionaryScalar):
    return _value(scalar.value)
  if isinstance(scalar, pyarrow.ListScalar):
    return [_value(value) for value in scalar.values]
  return scalar.as_buffer().to_pybytes()
