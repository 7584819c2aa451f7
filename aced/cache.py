"""Stores the embeddings of a data set by a frozen model.

    python -m aced.cache --config configs/acid.py:demo --model reference \\
        --output caches/reference --config.frozen.reference.init=runs/reference

    python -m aced.train --config configs/acid.py:demo --workdir runs/acid \\
        --config.frozen.reference.cache=caches/reference

Training then reads them beside the records and never runs the model. Pictures,
captions and tokens are those of the config, so give both commands the same one.
Killed and started again, it goes on with the shards that are missing; with
several processes, each writes its share.
"""

import functools
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils
from tqdm import tqdm

from aced import config as config_lib
from aced import evaluation
from aced.data import cache as cache_lib
from aced.data.pipeline import eval_batches, eval_captions
from aced.data.records import Slice
from aced.evaluation.embed import pad_rows
from aced.files import write_json
from aced.models import params as params_lib
from aced.training import auto, blueprint, command, sanity, sharding, views
from aced.training.build import load_weights
from aced.training.embedding import embed
from aced.training.input import Input, open_input


class Encoder(NamedTuple):
  """A frozen model on the devices, ready to embed rows of this process.

  Attributes:
    images: `(n, h, w, 3)` -> `(n, d)`.
    texts: `(n, l)` -> `(n, d)`.
    fingerprint: of its parameters.
    t: its temperature.
    b: its bias.
    width: `d`.
  """

  images: Any
  texts: Any
  fingerprint: str
  t: float
  b: float
  width: int


def write_cache(
  config: Mapping[str, Any],
  model: str,
  output: str | pathlib.Path,
  *,
  batch_size: int = 256,
  shard_records: int = 16_384,
) -> cache_lib.EmbeddingCache:
  """Embeds every record of `config.input.source` that a cache lacks.

  Args:
    config: as training takes it.
    model: a name in `config.frozen`.
    output: the folder of the cache, made if it is not there.
    batch_size: records embedded at a time, of each process.
    shard_records: records of a shard: what is lost at most when it is killed.

  Returns:
    The cache, whole.

  Raises:
    ConfigError: the config is wrong, or pictures are augmented.
    CacheError: the folder holds a cache of something else.
    ValueError: a source, a tokenizer or weights are wrong.
  """
  config = auto.fill(config_lib.resolve(config))
  check_request(config, model, batch_size, shard_records)
  view = views.from_config(config)[model]
  inputs = open_input(config).seen(view)
  sanity.check_captions(
    f"frozen.{model}", inputs.source, inputs.tokenizer, view.tokenizer
  )
  folder = prepare(output)
  encoder = make_encoder(config, model, view, inputs.tokenizer.vocab_size)
  contents = cache_lib.Contents(
    identities={"model": encoder.fingerprint, **inputs.identities()},
    records=len(inputs.source),
    shard_records=shard_records,
    width=encoder.width,
    t=encoder.t,
    b=encoder.b,
  )
  contents = claim(folder, contents)
  missing = _agreed(
    [
      k
      for k in range(contents.shards)
      if not cache_lib.whole(folder, k, contents)
    ]
  )
  done = contents.records - sum(len(contents.rows(k)) for k in missing)
  process, processes = jax.process_index(), jax.process_count()
  unusable = 0  # Of this process.
  with tqdm(
    total=contents.records,
    initial=done,
    unit=" records",
    desc=f"caching {model}",
    disable=process != 0,
  ) as bar:
    for first in range(0, len(missing), processes):
      turn = missing[first : first + processes]
      shard = turn[process] if process < len(turn) else None
      entries = embed_shard(inputs, encoder, contents, shard, batch_size)
      unusable += entries.count(cache_lib.UNUSABLE)
      bar.set_postfix({"cannot be read": unusable} if unusable else {})
      if shard is not None:
        cache_lib.write_shard(folder, shard, contents, entries)
      bar.update(sum(len(contents.rows(k)) for k in turn))
  if processes > 1:
    multihost_utils.sync_global_devices("the cache is written")
  return cache_lib.EmbeddingCache(folder)


def prepare(output: str | pathlib.Path) -> pathlib.Path:
  """Makes the folder, and removes what a killed process left half written.

  Raises:
    CacheError: it cannot be made, or holds something else.
  """
  folder = pathlib.Path(output).expanduser().absolute()
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise cache_lib.CacheError(
      f"--output={output}: the folder cannot be made: {error.strerror}; name"
      " one that can be written."
    ) from error
  if jax.process_index() == 0:
    for part in folder.glob(".embeddings-*.part-*"):
      part.unlink(missing_ok=True)
  others = sorted(path.name for path in folder.iterdir())
  if others and not (folder / cache_lib.FILE).exists():
    raise cache_lib.CacheError(
      f"--output={output} holds other files ({', '.join(others[:5])}); name an"
      " empty or a new folder."
    )
  return folder


def check_request(
  config: Any, model: str, batch_size: int, shard_records: int
) -> None:
  """Refuses what cannot be cached.

  Raises:
    ConfigError: naming what is wrong.
  """
  if config.decoder.model:
    raise config_lib.ConfigError(
      "config.decoder trains a decoder, which reads no cached embeddings; take"
      " a config without it."
    )
  if model not in config.frozen:
    raise config_lib.ConfigError(
      f"--model={model!r} is not in config.frozen"
      f" ({', '.join(config.frozen) or 'empty'})."
      f"{config_lib.did_you_mean(model, config.frozen)}"
    )
  for name in ("crop_scale", "flip"):
    if config.input[name]:
      raise config_lib.ConfigError(
        f"config.input.{name}={config.input[name]!r} shows another picture each"
        " time, and a cache holds one look at each: set crop_scale=() and"
        " flip=False, here and in training, or train without a cache."
      )
  for name, value in (
    ("batch_size", batch_size),
    ("shard_records", shard_records),
  ):
    if value < 1:
      raise config_lib.ConfigError(f"--{name}={value} must be above 0.")


def make_encoder(
  config: Any, name: str, view: views.View, vocab_size: int
) -> Encoder:
  """Loads a frozen model of a resolved config onto the devices."""
  mesh = sharding.make_mesh(config.mesh)
  model = blueprint.build_model(config.frozen[name], vocab_size)
  params = load_weights(config, name, model, view)
  fingerprint = params_lib.fingerprint(params)
  params = jax.device_put(
    params, sharding.by_rules(params, config.frozen_sharding, mesh)
  )
  found = jax.jit(functools.partial(embed, model))(
    params, blueprint.example(view)
  )
  images, texts = (
    functools.partial(function, params)
    for function in evaluation.embedders(model, mesh)
  )
  return Encoder(
    images,
    texts,
    fingerprint,
    float(found.t),
    float(found.b),
    found.zimg.shape[1],
  )


def claim(
  folder: pathlib.Path, contents: cache_lib.Contents
) -> cache_lib.Contents:
  """Makes a folder this cache's, or checks that it already is.

  Returns:
    The contents: those of the cache that is there, whose shards may be of
    another size.

  Raises:
    CacheError: the folder holds a cache of something else.
  """
  if (folder / cache_lib.FILE).exists():
    found = cache_lib.read_contents(folder)
    cache_lib.check_identities(folder, found.identities, contents.identities)
    return found
  if jax.process_index() == 0:
    write_json(folder / cache_lib.FILE, contents._asdict())
  return contents


def embed_shard(
  inputs: Input,
  encoder: Encoder,
  contents: cache_lib.Contents,
  shard: int | None,
  batch_size: int,
) -> list[bytes]:
  """The entries of a shard; all processes call it in step.

  Args:
    inputs: what is read.
    encoder: what embeds it.
    contents: of the cache.
    shard: which one; None takes part in the others' computations alone.
    batch_size: rows at a time.
  """
  rows = range(0) if shard is None else contents.rows(shard)
  part = Slice(inputs.source, rows.start, rows.stop) if len(rows) else None
  size = inputs.transform.image_size
  zimg, usable = _embed_all(
    encoder.images,
    _images(inputs, part, batch_size),
    np.zeros((0, size, size, 3), np.uint8),
    batch_size,
  )
  texts, owner = eval_captions(part) if part is not None else ([], [])
  ztxt, _ = _embed_all(
    encoder.texts,
    _texts(inputs.tokenizer, texts, batch_size),
    np.zeros((0, inputs.tokenizer.length), np.int32),
    batch_size,
  )
  captions = [[] for _ in rows]
  for index, z in zip(owner, ztxt, strict=True):
    captions[index].append(z)
  return [
    cache_lib.encode(zimg[k] if usable[k] else None, captions[k])
    for k in range(len(rows))
  ]


def _images(
  inputs, part, batch_size
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields `(pictures, whether each can be used)`."""
  if part is None:
    return
  with eval_batches(
    part,
    inputs.tokenizer,
    inputs.transform,
    batch_size=batch_size,
    **inputs.reading,
  ) as batches:
    for batch in batches:
      kept = batch["index"] >= 0
      yield batch["image"][kept], batch["_mask"][kept]


def _texts(tokenizer, texts, batch_size):
  for first in range(0, len(texts), batch_size):
    labels = tokenizer(texts[first : first + batch_size])
    yield labels, np.ones(len(labels), bool)


def _embed_all(embed_rows, batches, nothing, batch_size):
  """Embeds all batches; `(n, d)` float32 and which rows can be used.

  With several processes every one goes on until none has any more, as all
  devices compute together. Every call has one size, so nothing is compiled
  twice.
  """
  z, usable = [np.zeros((0, 0))], [np.zeros(0, bool)]
  while True:
    rows, mask = next(batches, (nothing, np.zeros(0, bool)))
    if not max(_everyone(len(rows))):
      break
    found = np.asarray(embed_rows(pad_rows(rows, batch_size)))
    z.append(found[: len(rows)])
    usable.append(mask)
  return np.concatenate(z[1:] or z), np.concatenate(usable)


def _everyone(number: int) -> list[int]:
  """The number of every process."""
  if jax.process_count() == 1:
    return [number]
  return multihost_utils.process_allgather(np.int32(number)).tolist()


def _agreed(shards: list[int]) -> list[int]:
  """What the first process found: a file may appear between two looks."""
  if jax.process_count() == 1:
    return shards
  content = json.dumps(shards).encode()
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
  padded = np.frombuffer(content.ljust(size)[:size], np.uint8)
  sent = multihost_utils.broadcast_one_to_all(padded)
  return json.loads(np.asarray(sent).tobytes())


def main() -> None:
  """Runs the command."""
  values = flags.FLAGS
  found = write_cache(
    config_lib.to_plain(values.config),
    values.model,
    values.output,
    batch_size=values.batch_size,
    shard_records=values.shard_records,
  )
  if jax.process_index() == 0:
    print(f"--config.frozen.{values.model}.cache={found.path}")


if __name__ == "__main__":
  command.define_flags(ours=True, together=True)
  flags.DEFINE_string("model", "reference", "A name in config.frozen.")
  flags.DEFINE_string("output", None, "Folder of the cache.")
  flags.DEFINE_integer("batch_size", 256, "Records at a time, per process.")
  flags.DEFINE_integer("shard_records", 16_384, "Records of a shard.")
  flags.mark_flag_as_required("output")
  command.run(main)
