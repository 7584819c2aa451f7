"""Weights in and out."""

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from aced import files
from aced.models import params
from aced.models import saved as saved_lib
from aced.models.formats import npz
from aced.models.params import ParamsError
from tests.models.two_towers_test import draw, shapes, tiny


def make(scan=False, seed=0):
  """Parameters of a tiny pair; `scan` of both towers, or of (image, text)."""
  image, text = scan if isinstance(scan, tuple) else (scan, scan)
  config = tiny(image__depth=3, image__scan=image, text__scan=text)
  return draw(shapes(config, 8, 5), seed)


def assert_equal(a, b):
  a, b = params.flatten(a), params.flatten(b)
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name])


def test_npz_round_trip(tmp_path, monkeypatch):
  tree = make()
  params.save_npz(tmp_path / "w.npz", tree)
  assert_equal(params.load(tmp_path / "w.npz"), tree)
  assert_equal(params.load(f"{tmp_path}/w.npz:img"), tree["img"])
  monkeypatch.chdir(tmp_path)
  assert_equal(params.load("w.npz"), tree)
  assert [p.name for p in tmp_path.iterdir()] == ["w.npz"]


@pytest.mark.parametrize("prefix", npz.PREFIXES)
def test_npz_prefixes_and_bfloat16(tmp_path, prefix):
  value = np.arange(4, dtype=ml_dtypes.bfloat16)
  np.savez(
    tmp_path / "w.npz",
    **{f"{prefix}img/kernel": value.view("V2"), "opt/count": np.int32(3)},
  )
  loaded = params.load(tmp_path / "w.npz")
  assert loaded["img"]["kernel"].dtype == ml_dtypes.bfloat16
  np.testing.assert_array_equal(loaded["img"]["kernel"], value)
  assert list(loaded) == ["img"]


def test_bad_files_are_refused_by_name(tmp_path):
  np.savez(tmp_path / "bad.npz", x=np.array([{"a": 1}], dtype=object))
  with pytest.raises(ParamsError, match=r"bad\.npz holds pickled objects"):
    params.load(tmp_path / "bad.npz")
  params.save_npz(tmp_path / "cut.npz", make())
  whole = (tmp_path / "cut.npz").read_bytes()
  (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
  with pytest.raises(ParamsError, match=r"cut\.npz is not a whole"):
    params.load(tmp_path / "cut.npz")
  with pytest.raises(FileNotFoundError, match="no weights at"):
    params.load(tmp_path / "none.npz")
  with pytest.raises(FileNotFoundError, match="expected an .npz file, a"):
    params.load(tmp_path / "none")
  (tmp_path / "lfs.npz").write_text("version https://git-lfs.github.com/spec")
  with pytest.raises(ParamsError, match=r"lfs\.npz is not a whole"):
    params.load(tmp_path / "lfs.npz")
  params.save_npz(tmp_path / "w.npz", make())
  with pytest.raises(ParamsError, match="has no subtree 'image'; at its top"):
    params.load(f"{tmp_path}/w.npz:image")


@pytest.mark.parametrize("folder", ["run", "me@host"])
def test_checkpoints_of_ours_without_the_optimiser(tmp_path, folder):
  tmp_path = tmp_path / folder
  first, second, scores = make(seed=1), make(seed=2), {}
  with ocp.CheckpointManager(tmp_path / saved_lib.CHECKPOINTS) as manager:
    for step, tree, value in ((5, first, 0.9), (10, second, 0.2)):
      state = {
        "params": {**tree, "projections": {"t": np.ones(2)}},
        "opt_state": {"mu": np.zeros(3)},
      }
      manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state),
          metadata=ocp.args.JsonSave({}),
        ),
      )
      scores[step] = value
  folder = tmp_path / saved_lib.CHECKPOINTS
  with pytest.raises(FileNotFoundError, match="5, 10 were never finished"):
    params.load(tmp_path)
  for step in scores:
    files.seal(folder / str(step))
  scores = {"metric": "R@1", "scores": scores}
  files.write_json(folder / saved_lib.SCORES, scores)
  assert_equal(params.load(tmp_path), second)
  assert_equal(params.load(f"{tmp_path}@5"), first)
  assert_equal(params.load(f"{tmp_path}@best"), first)
  with pytest.raises(FileNotFoundError, match="there are 5, 10 and best"):
    params.load(f"{tmp_path}@7")


def test_merge_converts_between_stacked_and_apart():
  apart, stacked = make(), make(scan=True)
  assert params.has_stacked(stacked) and not params.has_stacked(apart)
  assert_equal(params.unstack_layers(params.stack_layers(apart)), apart)
  fitted = params.merge(apart, stacked)
  assert_equal(fitted, params.stack_layers(apart))
  assert_equal(params.merge(fitted, apart), apart)


@pytest.mark.parametrize("given", [(True, False), (False, True)])
@pytest.mark.parametrize("like", [(True, False), (False, True), (True, True)])
def test_merge_converts_each_tower_by_itself(given, like):
  apart = make()
  layouts = {True: params.stack_layers, False: params.unstack_layers}

  def laid_out(scans):
    img, txt = (
      layouts[scanned](apart[k])
      for k, scanned in zip(("img", "txt"), scans, strict=True)
    )
    return {**apart, "img": img, "txt": txt}

  fitted = params.merge(laid_out(given), make(scan=like))
  assert_equal(fitted, laid_out(like))


def test_merge_keeps_what_may_be_missing():
  given, like = make(seed=1), make(seed=2)
  del given["img"]["MAPHead_0"], given["b"]
  with pytest.raises(ParamsError) as error:
    params.merge(given, like, allow_missing=("^img/MAPHead_0/",))
  assert "1 missing:\n    b (1,)" in str(error.value)
  fitted = params.merge(given, like, allow_missing=("^img/MAP", "^b$"))
  assert_equal(fitted["img"]["MAPHead_0"], like["img"]["MAPHead_0"])
  assert_equal(fitted["txt"], given["txt"])
  # A shape alone has no value to keep.
  shapes = jax.eval_shape(lambda: like)
  with pytest.raises(ParamsError, match="missing"):
    params.merge(given, shapes, allow_missing=("MAPHead_0", "^b$"))


def test_load_fits_to_a_model(tmp_path):
  params.save_npz(tmp_path / "w.npz", make())
  loaded = params.load(tmp_path / "w.npz", make(scan=True))
  assert_equal(loaded, params.stack_layers(make()))


def test_merge_casts_to_the_models_dtype():
  low = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), make())
  fitted = params.merge(low, make())
  assert {x.dtype for x in jax.tree.leaves(fitted)} == {np.dtype(np.float32)}


def test_layers_that_are_not_all_there_are_refused():
  tree = make()
  del tree["img"]["Transformer"]["encoderblock_1"]
  with pytest.raises(ParamsError, match=r"layers \[0, 2\] are not 0 to"):
    params.stack_layers(tree)


def test_merge_lists_everything_that_differs():
  given, like = make(), make()
  del given["img"]["MAPHead_0"]["probe"]
  given["txt"]["more"] = np.zeros(2)
  given["t"] = np.zeros(3, np.float32)
  with pytest.raises(ParamsError) as error:
    params.merge(given, like)
  text = str(error.value)
  assert "1 missing:\n    img/MAPHead_0/probe (1, 1, 8)" in text
  assert "1 extra:\n    txt/more (2,)" in text
  assert "1 of another shape:\n    t (3,), expected (1,)" in text


def test_long_lists_are_cut_with_a_count():
  text = params.compare({}, {f"n{k:02}": (1,) for k in range(33)})
  assert "33 missing" in text and "and 13 more" in text and "n20" not in text


def test_fingerprint_tells_parameters_apart():
  tree = make()
  assert params.fingerprint(tree) == params.fingerprint(make())
  other = make()
  other["t"] = other["t"] + 1e-6
  assert params.fingerprint(tree) != params.fingerprint(other)
  assert len(params.fingerprint(tree)) == 16
  assert params.count_params(tree) == sum(x.size for x in jax.tree.leaves(tree))
