"""Input pipelines that are measured, each in a process and on cores of its own.

Started by `benchmarks.input_speed`, by any Python that has what the one asked
for needs: nothing here imports `aced` or TensorFlow before that is known.

    python -m benchmarks.input_contenders '{"kind": "aced", "cores": [0], ...}'
"""

import glob
import itertools
import json
import multiprocessing
import os
import sys
import tarfile
import time

import numpy as np

from benchmarks.input_processes import tree_seconds

# Batches before the clock starts: what was read ahead while the first one was
# waited for is used up, and what is read ahead from then on stays as much.
WARM_UP = 4


def measure(batches, seconds, ready=lambda: None):
  """Images and seconds from the end of one batch to that of another.

  `cpu_seconds` is what this process and those that it started used of them.

  Args:
    batches: `(images, tokens)`, endless.
    seconds: the least that pass between the two.
    ready: called before the clock starts.
  """
  batches = iter(batches)
  for images, tokens in itertools.islice(batches, WARM_UP):
    shapes = [list(x.shape) for x in (images, tokens) if x is not None]
    assert images.dtype == np.uint8, images.dtype
  ready()
  count, start = 0, time.perf_counter()
  used = tree_seconds(os.getpid())
  for images, _ in batches:
    count += len(images)
    spent = time.perf_counter() - start
    if spent >= seconds:
      used = tree_seconds(os.getpid()) - used
      found = {"images": count, "seconds": spent, "cpu_seconds": used}
      return found | {"shapes": shapes}
  raise RuntimeError("the batches have come to an end")


def shards(spec):
  """The tar shards, or the TFRecord files made of them."""
  ending = {"tensorflow": "tfrecord"}.get(spec["kind"], "tar")
  return sorted(glob.glob(f"{spec['folder']}/*.{ending}"))


def aced(spec):
  """Ours: shuffled over all shards, by threads or by processes."""
  from aced.data import pipeline
  from aced.data.sources import open_source
  from aced.data.tokenizers import load_tokenizer
  from aced.data.transforms import Transform

  with pipeline.superbatches(
    open_source(f"webdataset:{spec['folder']}/*.tar"),
    load_tokenizer(spec["tokenizer"], spec["length"]),
    Transform(spec["size"], spec["resize"], shrink=spec["shrink"]),
    batch_size=spec["batch"],
    seed=0,
    num_steps=10**6,
    num_threads=len(spec["cores"]),
    num_workers=len(spec["cores"]) if spec["workers"] else 0,
  ) as batches:
    pairs = ((b["image"], b["labels"]) for b in batches)
    return measure(pairs, spec["seconds"])


def webdataset(spec):
  """The package webdataset with Pillow, as open_clip puts them together.

  A process a core reads its share of the shards, in order. Batches stay in the
  process that made them, which favours it: open_clip's go to another one.
  """
  count = len(spec["cores"])
  if count == 1:
    return measure(_webdataset_batches(spec, shards(spec)), spec["seconds"])
  context = multiprocessing.get_context("spawn")
  barrier, results = context.Barrier(count), context.SimpleQueue()
  processes = [
    context.Process(
      target=_webdataset_worker,
      args=(spec, shards(spec)[k::count], barrier, results),
    )
    for k in range(count)
  ]
  for process in processes:
    process.start()
  found = [results.get() for _ in processes]
  for process in processes:
    process.join()
  if any(x is None for x in found):
    raise RuntimeError("a process has failed; its own words are above")
  seconds = max(x["seconds"] for x in found)
  total = {
    key: sum(x[key] * seconds / x["seconds"] for x in found)
    for key in ("images", "cpu_seconds")
  }
  return found[0] | total | {"seconds": seconds}


def _webdataset_worker(spec, paths, barrier, results):
  """Measures while the others do; None is a failure."""
  result = None
  try:
    batches = _webdataset_batches(spec, paths)
    result = measure(batches, spec["seconds"], barrier.wait)
  finally:
    if result is None:
      barrier.abort()
    results.put(result)


def _webdataset_batches(spec, paths):
  import webdataset as wds
  from PIL import Image

  from aced.data.tokenizers import load_tokenizer

  tokenizer = load_tokenizer(spec["tokenizer"], spec["length"])
  method = Image.Resampling[spec["resize"].upper()]

  def picture(image):
    small = image.convert("RGB").resize((spec["size"],) * 2, method)
    return np.asarray(small)

  # `repeat()` would start anew after the last whole batch of an epoch, and so
  # decode pictures that it drops; training goes through shards without end.
  return (
    wds.WebDataset(paths * 10_000, shardshuffle=False)
    .decode("pilrgb")
    .rename(image="jpg;png;jpeg;webp", text="txt")
    .map_dict(image=picture, text=lambda text: tokenizer([text])[0])
    .to_tuple("image", "text")
    .batched(spec["batch"], partial=False)
  )


def tensorflow(spec):
  """tf.data with the ops and the order of big_vision's input pipeline.

  Pictures alone, without tokens, which favours it.
  """
  tf = _tensorflow(spec)
  count = len(spec["cores"])
  data = tf.data.TFRecordDataset(shards(spec)).repeat()
  data = data.map(
    lambda x: _uint8(tf, _resized(tf, spec, _parsed(tf, x)["image"])),
    num_parallel_calls=count,
  )
  data = data.batch(spec["batch"], drop_remainder=True).prefetch(2)
  options = tf.data.Options()
  options.threading.private_threadpool_size = count
  options.threading.max_intra_op_parallelism = 1  # As in big_vision.
  options.experimental_optimization.inject_prefetch = False
  batches = iter(data.with_options(options))
  # Without a copy, as big_vision does it.
  pairs = ((np.asarray(memoryview(x)), None) for x in batches)
  return measure(pairs, spec["seconds"]) | {"version": tf.__version__}


def tensorflow_write(spec):
  """Writes a TFRecord file of the records of each shard."""
  tf = _tensorflow(spec)
  for path in shards(spec):
    target = path.removesuffix("tar") + "tfrecord"
    if os.path.exists(target):
      continue
    with (
      tarfile.open(path) as shard,
      tf.io.TFRecordWriter(target + ".part") as writer,
    ):
      values = {m.name: shard.extractfile(m).read() for m in shard}
      for key in dict.fromkeys(name.split(".")[0] for name in values):
        image, text = values[f"{key}.jpg"], values[f"{key}.txt"]
        example = _example(tf, {"image": image, "text": text})
        writer.write(example.SerializeToString())
    os.rename(target + ".part", target)
  return {"version": tf.__version__}


def tensorflow_resize(spec):
  """Keeps what TensorFlow makes of the first pictures, not rounded."""
  tf = _tensorflow(spec)
  data = tf.data.TFRecordDataset(shards(spec | {"kind": "tensorflow"}))
  images = [
    _resized(tf, spec, _parsed(tf, x)["image"]).numpy()
    for x in data.take(spec["records"])
  ]
  np.save(spec["output"], np.stack(images))
  return {"version": tf.__version__}


def _tensorflow(spec):
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  import tensorflow as tf

  tf.config.threading.set_intra_op_parallelism_threads(len(spec["cores"]))
  tf.config.threading.set_inter_op_parallelism_threads(len(spec["cores"]))
  return tf


def _example(tf, values):
  features = {
    name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
    for name, value in values.items()
  }
  return tf.train.Example(features=tf.train.Features(feature=features))


def _parsed(tf, record):
  text = tf.io.FixedLenFeature((), tf.string)
  return tf.io.parse_single_example(record, {"image": text, "text": text})


def _resized(tf, spec, data):
  """Decodes as big_vision does by default; float32, not rounded."""
  image = tf.io.decode_image(data, channels=3, expand_animations=False)
  return tf.image.resize(
    image,
    (spec["size"], spec["size"]),
    method=spec["resize"],
    antialias=spec["antialias"],
  )


def _uint8(tf, image):
  return tf.cast(tf.clip_by_value(image, 0.0, 255.0), tf.uint8)


KINDS = {
  f.__name__: f
  for f in (aced, webdataset, tensorflow, tensorflow_write, tensorflow_resize)
}


def main():
  spec = json.loads(sys.argv[1])
  # Before anything is imported that counts the cores.
  os.sched_setaffinity(0, spec["cores"])
  print(json.dumps(KINDS[spec["kind"]](spec)), flush=True)


if __name__ == "__main__":
  main()
