import json

import pytest

from aced.config import ConfigError
from aced.data import faults
from aced.data.records import SourceError
from aced.data.sources import open_source
from aced.data.transforms import decode

SETS = {
  "emoji/train": 6962,
  "emoji/test_vendor": 1879,
  "emoji/test_concept": 850,
  "grocery/train": 2640,
  "grocery/val": 296,
  "grocery/test": 2485,
  "signdigits/train": 1660,
  "signdigits/test": 402,
  "coco_cc/test": 148,
}


@pytest.fixture
def path(tmp_path):
  path = tmp_path / "x.jsonl"
  lines = [json.dumps({"text": f"t{i}", "name": f"n{i}"}) for i in range(10)]
  path.write_text("\n".join(lines))
  return path


def test_kinds_and_options(path):
  scenes = open_source("synthetic:val?size=7&seed=2&image_size=24")
  assert len(scenes) == 7
  assert scenes[6]["image"].shape == (24, 24, 3)
  assert repr(scenes) == "synthetic:val?size=7&seed=2&image_size=24"
  assert len(open_source("synthetic:")) == 20_000
  for spec in (f"jsonl:{path}", f"{path}"):
    assert len(open_source(spec)) == 10
  assert open_source(f"{path}?label=name").fields(3)["label"] == "n3"


def test_start_and_limit(path):
  source = open_source(f"{path}?start=4&limit=3")
  assert [source.fields(i)["text"] for i in range(3)] == ["t4", "t5", "t6"]
  assert len(source) == 3
  assert len(open_source(f"{path}?start=4")) == 6
  assert len(open_source(f"{path}?limit=99")) == 10
  with pytest.raises(IndexError):
    source[3]
  with pytest.raises(SourceError, match=r"start=10 .* leave nothing"):
    open_source(f"{path}?start=10")
  with pytest.raises(SourceError, match=r"limit=0 leave nothing"):
    open_source(f"{path}?limit=0")


def test_noise_wraps_every_kind(path):
  for spec in (f"{path}?", "synthetic:?size=10&"):
    plain = open_source(spec)
    assert not plain.has_faults
    assert "fault" not in plain.fields(0)
    noisy = open_source(f"{spec}&noise=1&faults=swapped+junk&noise_seed=4")
    kinds = {noisy.fields(i)["fault"] for i in range(10)}
    assert kinds == {faults.SWAPPED, faults.JUNK}
    # Of noise=0 it is known that everything is clean.
    clean = open_source(f"{spec}&noise=0")
    assert clean.has_faults and clean.fields(0)["clean"]


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ("syntetic:train", r"'syntetic' is not a kind.*mean 'synthetic'"),
    ("pairs.csv", r"'pairs.csv' is not a kind"),
    ("", r"'' is not a kind"),
    ("synthetic:trian", r"synthetic:trian is not a split.*mean 'train'"),
    ("synthetic:train?sise=3", r"'sise' is not an option.*mean 'size'"),
    ("synthetic:train?label=x", r"'label' is not an option of synthetic"),
    ("synthetic:train?size=3.5", r"size=3.5 must be of type int"),
    ("synthetic:train?size=0", r"size=0 must be 1 or above"),
    ("synthetic:train?image_size=8", r"image_size=8 must be 16"),
    ("synthetic:train?seed=-1", r"seed=-1"),
    ("synthetic:train?size", r"'size' must be option=value"),
    ("synthetic:train?size=2&size=3", r"each option once"),
    ("synthetic:train?noise=lots", r"noise=lots must be of type float"),
    ("synthetic:train?noise=2", r"noise=2.0 must be the share"),
    ("synthetic:train?faults=junk", r"add noise="),
    ("synthetic:train?noise=1&faults=jnk", r"mean 'junk'"),
    ("jsonl:", r"needs a file"),
    ("jsonl:none.jsonl", r"there is no file .*none.jsonl"),
  ],
)
def test_refuses_by_name(spec, message):
  with pytest.raises(SourceError, match=message) as error:
    open_source(spec)
  assert isinstance(error.value, ConfigError)


@pytest.mark.parametrize("name", SETS)
def test_real_sets_are_read_whole(shared_data, name):
  source = open_source(f"jsonl:{shared_data / name}.jsonl")
  assert len(source) == SETS[name]
  # Every 13th picture is decoded: all of them would take most of a minute.
  for index in range(0, len(source), 13):
    assert decode(source[index]["image"]).shape[2] == 3
    assert source[index]["text"]
