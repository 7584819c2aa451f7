"""The cache command: what it stores, resumes, refuses, and what it saves."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from aced import cache as cache_command
from aced import config as config_lib
from aced.config import ConfigError
from aced.data import cache
from aced.data.cache import CacheError, EmbeddingCache
from aced.models import params as params_lib
from aced.train import train
from aced.training import blueprint, program, views
from aced.training.build import build, load_weights
from aced.training.tracker import METRICS_FILE, read_jsonl
from tests import xla
from tests.train_test import command, smoke, write_pairs


def make(config, folder, **more):
  options = {"batch_size": 64, "shard_records": 150} | more
  return cache_command.write_cache(config, "reference", folder, **options)


def with_cache(config, folder, **changes):
  config["frozen"]["reference"] |= {"cache": str(folder), **changes}
  return config


@pytest.fixture(scope="module")
def folder(repository, tmp_path_factory):
  """The cache of the smoke config's reference: 400 records, 3 shards."""
  path = tmp_path_factory.mktemp("cache")
  make(smoke(repository), path)
  return path


def test_embeddings_are_those_of_the_model(repository, folder):
  run = build(smoke(repository))
  found = EmbeddingCache(folder)
  indices = [0, 7, 149, 150, 399]
  zimg, ztxt, usable = found.read(indices, [0] * 5)
  records = [run.input.source[i] for i in indices]
  image = np.stack([run.input.transform(r) for r in records])
  labels = run.input.tokenizer([r["text"] for r in records])
  want = blueprint.embed(
    run.frozen_models["reference"],
    run.frozen["reference"],
    {"image": image, "labels": labels},
  )
  assert usable.all()
  # bfloat16 keeps eight bits.
  for got, z in ((zimg, want.zimg), (ztxt, want.ztxt)):
    got = got.astype(np.float32)
    np.testing.assert_allclose(got, z, rtol=2**-8, atol=1e-6)
  assert found.scales == pytest.approx((float(want.t), float(want.b)))
  assert found.fingerprint == run.identities["frozen.reference"]


def test_several_captions_and_broken_records(repository, tmp_path):
  config = smoke(repository)
  source = write_pairs(tmp_path / "pairs", 96, broken=(3, 60))
  first = json.loads(source.read_text().splitlines()[50])
  lines = source.read_text().splitlines()
  lines[50] = json.dumps(first | {"text": ["one thing", "", "another"]})
  source.write_text("\n".join(lines))
  config["input"]["source"] = f"jsonl:{source}"
  found = make(config, tmp_path / "cache", shard_records=40)
  usable = found.read(range(96), [0] * 96)[2]
  run = build(with_cache(config, tmp_path / "cache"))
  with run.batches(0) as batches:
    batch, info = next(batches)
  # What the cache cannot use is what training cannot use.
  np.testing.assert_array_equal(usable[info["index"]], batch["_mask"])
  assert usable.sum() == 93
  second = found.read([50, 50, 50], [0, 1, 2])
  assert second[2].tolist() == [True, True, False]
  assert (second[1][0] != second[1][1]).any()


@pytest.mark.slow
def test_training_from_a_cache_is_training_with_the_model(
  repository, tmp_path, folder
):
  """Selection and loss differ by the rounding of bfloat16 alone."""
  config = smoke(repository, "acid", "easy_reference", total_steps=3)
  train(config, tmp_path / "a")
  train(with_cache(config, folder, init=""), tmp_path / "b")
  a, b = (read_jsonl(tmp_path / x / METRICS_FILE) for x in "ab")
  for one, two in zip(a, b, strict=True):
    assert two["loss"] == pytest.approx(one["loss"], rel=0.02)
    name = "curation/pool_score"
    assert two[name] == pytest.approx(one[name], rel=0.01)


def test_no_frozen_model_is_built_or_run(repository, folder):
  run = build(with_cache(smoke(repository), folder, init=""))
  assert not run.frozen and not run.frozen_models
  assert set(run.costs.parts) == {"training", "student scoring", "selection"}


def step_flops(run):
  """FLOPs of the matrix products of a run's step."""
  state, frozen, batch = run.shapes()
  where = jax.tree.map(lambda x: x.sharding, state)
  traced = run.train_step(where).trace(state, frozen, batch)
  return program.flops(traced.jaxpr)


def test_cached_acid_costs_one_plus_a_third_over_one_minus_f(
  repository, folder
):
  """By the ledger, and by the products of the traced program."""
  acid = build(with_cache(smoke(repository), folder, init=""))
  iid = build(smoke(repository, "iid"))
  selection = acid.costs.parts["selection"] / acid.costs.iid
  assert acid.costs.relative - selection == pytest.approx(1 + 1 / (3 * 0.2))
  # No gradient flows to pictures, so a backward pass is a little less than two
  # forward passes, and the ratio a little more.
  ratio = step_flops(acid) / step_flops(iid)
  assert ratio == pytest.approx(acid.costs.relative, rel=0.1)


def test_cut_short_it_makes_the_rest_and_keeps_what_is_whole(
  repository, folder, tmp_path
):
  for path in folder.iterdir():
    (tmp_path / path.name).write_bytes(path.read_bytes())
  whole = [cache.shard_path(tmp_path, k, 3).stat() for k in range(3)]
  path = cache.shard_path(tmp_path, 1, 3)
  path.write_bytes(path.read_bytes()[:100])
  with pytest.raises(CacheError, match="1 of 3 shards are missing or cut"):
    build(with_cache(smoke(repository), tmp_path))
  make(smoke(repository), tmp_path, shard_records=999)  # Its own size counts.
  again = [cache.shard_path(tmp_path, k, 3).stat() for k in range(3)]
  assert again[0].st_mtime_ns == whole[0].st_mtime_ns
  assert again[2].st_mtime_ns == whole[2].st_mtime_ns
  assert path.read_bytes() == cache.shard_path(folder, 1, 3).read_bytes()


@pytest.mark.parametrize(
  "section, key, value, name",
  [
    ("input", "source", "synthetic:train?size=400&seed=1", "input.source"),
    ("input", "text_length", 60, "input.tokenizer"),
    ("input", "resize", "bicubic", "input.transform"),
    ("input", "flip", True, "input.transform"),
  ],
)
def test_a_cache_of_other_data_is_refused_by_name(
  repository, folder, section, key, value, name
):
  config = with_cache(smoke(repository), folder, init="")
  config[section][key] = value
  with pytest.raises(CacheError, match=f"(?s)something else.*{name}: it was"):
    build(config)


def test_a_cache_of_another_model_is_refused(repository, folder, tmp_path):
  config = config_lib.resolve(smoke(repository))
  model = blueprint.build_model(config.frozen.reference, 258)
  view = views.from_config(config)["reference"]
  weights = load_weights(config, "reference", model, view)
  weights["t"] = weights["t"] + 1
  params_lib.save_npz(tmp_path / "other.npz", weights)
  other = str(tmp_path / "other.npz")
  with pytest.raises(CacheError, match="model: it was made of"):
    build(with_cache(smoke(repository), folder, init=other))
  with pytest.raises(CacheError, match="model: it was made of"):
    make(with_cache(smoke(repository), "", init=other), folder)


def test_what_cannot_be_cached_is_refused(repository, tmp_path):
  with pytest.raises(ConfigError, match="Did you mean 'reference'"):
    cache_command.write_cache(smoke(repository), "referense", tmp_path)
  with pytest.raises(ConfigError, match="flip=True shows another picture"):
    make(smoke(repository, input__flip=True), tmp_path)
  with pytest.raises(ConfigError, match="--shard_records=0 must be above 0"):
    make(smoke(repository), tmp_path, shard_records=0)
  with pytest.raises(ConfigError, match="student.cache is not a known key"):
    build(smoke(repository, student__cache="x"))
  assert not list(tmp_path.iterdir())


def test_the_folder_is_made_ready_first(repository, tmp_path):
  (tmp_path / "file").write_text("not a folder")
  with pytest.raises(CacheError, match="the folder cannot be made: Not a dir"):
    make(smoke(repository), tmp_path / "file" / "cache")
  part = tmp_path / "cache" / ".embeddings-00001-of-00003.array_record.part-7"
  part.parent.mkdir()
  part.write_text("half")
  assert cache_command.prepare(part.parent) == part.parent
  assert not part.exists()


def test_records_are_read_as_the_config_says(repository, tmp_path):
  config = smoke(repository, input__num_threads=0)
  with pytest.raises(ConfigError, match="num_threads=0 must be above 0"):
    make(config, tmp_path)


def test_a_folder_of_something_else_is_left_alone(repository, tmp_path):
  (tmp_path / "checkpoints").mkdir()
  with pytest.raises(CacheError, match=r"holds other files \(checkpoints\)"):
    make(smoke(repository), tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_random_weights_are_not_what_a_cache_is_compared_with(
  repository, folder, caplog
):
  config = with_cache(smoke(repository), folder)
  assert config["frozen"]["reference"]["init"] == "random"
  build(config)
  assert "random weights" not in caplog.text


def test_flexed_scoring_and_a_cache_exclude_each_other(repository, folder):
  changes = {"scoring__reference": True, "scoring__patch_size": 32}
  with pytest.raises(ConfigError, match="take one of them out"):
    build(with_cache(smoke(repository, **changes), folder))


@pytest.mark.slow
def test_killed_it_goes_on_to_the_same_files(repository, folder, tmp_path):
  path = tmp_path / "cache"
  line = [
    *(sys.executable, "-m", "aced.cache", "--output", str(path)),
    *("--config", "configs/acid.py:smoke", "--shard_records", "20"),
    *("--batch_size", "20"),
  ]
  # One device, so that a shard takes a while and another is not there yet.
  environment = os.environ | {"XLA_FLAGS": xla.QUICK}
  process = subprocess.Popen(line, cwd=repository, env=environment)
  while not list(path.glob("*-00001-of-*")) and process.poll() is None:
    time.sleep(0.02)
  process.send_signal(signal.SIGKILL)
  assert process.wait() == -signal.SIGKILL
  done = subprocess.run(
    line, cwd=repository, env=environment, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert f"--config.frozen.reference.cache={path}" in done.stdout
  found, whole = EmbeddingCache(path), EmbeddingCache(folder)
  for got, want in zip(
    found.read(range(400), [0] * 400),
    whole.read(range(400), [0] * 400),
    strict=True,
  ):
    # Eight devices embed eight rows, one all twenty: products of another shape.
    np.testing.assert_allclose(
      got.astype(np.float32), want.astype(np.float32), rtol=2**-7, atol=1e-5
    )


PROCESS = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"localhost:{sys.argv[2]}", 2, int(sys.argv[1]))
from tests.cache_test import make
from tests.train_test import smoke
import pathlib
make(smoke(pathlib.Path.cwd()), sys.argv[3], shard_records=int(sys.argv[4]))
"""


@pytest.mark.slow
def test_two_processes_write_what_one_does(repository, folder, tmp_path):
  import socket

  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  environment = os.environ | {"XLA_FLAGS": xla.QUICK}
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", PROCESS, str(k), str(port), str(tmp_path), "150"],
      cwd=repository,
      env=environment,
      stderr=subprocess.PIPE,
    )
    for k in range(2)
  ]
  for process in processes:
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error.decode()[-2000:]
  one, two = EmbeddingCache(folder), EmbeddingCache(tmp_path)
  # Weights drawn under other settings of the compiler differ by rounding.
  assert two.contents.identities.keys() == one.contents.identities.keys()
  assert two.contents._replace(identities={}) == one.contents._replace(
    identities={}
  )
  for a, b in zip(
    one.read(range(400), [0] * 400),
    two.read(range(400), [0] * 400),
    strict=True,
  ):
    np.testing.assert_allclose(
      a.astype(np.float32), b.astype(np.float32), rtol=2**-7, atol=1e-5
    )


def test_the_command_names_what_is_wrong(repository, tmp_path):
  code, text = command(
    repository,
    "--config=configs/acid.py:smoke",
    f"--output={tmp_path}",
    "--model=teacher",
    module="aced.cache",
  )
  assert code == 1
  assert "--model='teacher' is not in config.frozen (reference)" in text
