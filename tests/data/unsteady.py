"""A source whose records do what no record should.

A module of its own, light to import: every process that reads does so.
"""

import os
import signal
import time

import numpy as np

from aced.data.records import Source


class Unsteady(Source):
  """Records by number, some of which do what no record should.

  Args:
    kills: records that end the process that reads them.
    hangs: records that never come.
    once: a folder that notes what has happened; given, it happens only once.
    fails: records whose reading raises.
    lost: whether even the place of a record cannot be told.
  """

  def __init__(self, size, kills=(), hangs=(), once=None, fails=(), lost=False):
    self.size, self.kills, self.hangs = size, kills, hangs
    self.once, self.fails, self.lost = once, fails, lost

  def __len__(self):
    return self.size

  def __repr__(self):
    return "unsteady"

  def __getitem__(self, index):
    if index in self.fails:
      raise OSError(5, "the disk is gone")
    if self._happens(index):
      if index in self.kills:
        os.kill(os.getpid(), signal.SIGKILL)
      if index in self.hangs:
        time.sleep(3600)
    image = np.full((16, 16, 3), index % 256, np.uint8)
    return {"image": image, "text": f"r{index}"}

  def where(self, index):
    if self.lost:
      raise OSError(5, "the disk is gone")
    return f"shelf {index // 10}"

  def _happens(self, index):
    if self.once is None or index not in (*self.kills, *self.hangs):
      return True
    mark = self.once / str(index)
    if mark.exists():
      return False
    mark.touch()
    return True


class Unsendable(Exception):
  """An error that can be pickled, and not be made again from that."""

  def __init__(self, one, two):
    super().__init__(f"{one} and {two}")


class Failing(Unsteady):
  """A source whose records fail in a way of its own."""

  def __getitem__(self, index):
    raise Unsendable("this", "that")


class UnsteadyTokens:
  """A tokenizer that ends its process at one text."""

  length, vocab_size, content, spec = 4, 9, b"", "unsteady"

  def __init__(self, kills="r7"):
    self.kills = kills  # None is any.

  def __call__(self, texts):
    if self.kills is None or self.kills in texts:
      os.kill(os.getpid(), signal.SIGKILL)
    return np.zeros((len(texts), self.length), np.int32)


class SlowToOpen(Unsteady):
  """A source that does not come to be opened in another process."""

  def __setstate__(self, state):
    time.sleep(3600)
