"""Package metadata. ``pip install .`` is all a CPU needs; extras name what else one may want."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (ROOT / "vit_jax" / "__init__.py").read_text())[1]

NOTEBOOKS = ["ipykernel", "nbclient", "nbformat"]
ONNX = ["onnx>=1.18", "onnxscript>=0.5", "onnxruntime>=1.22"]
PEERS = ["torch>=2.6", "timm>=1.0.16", "transformers>=5", "open_clip_torch>=3", *ONNX]
REMOTE = ["fsspec[http]", "gcsfs"]
SENTENCEPIECE = ["sentencepiece>=0.2"]
TEST = [REMOTE[0], *SENTENCEPIECE, "hypothesis", "pytest>=8", "pytest-cov", *NOTEBOOKS]

setup(
    name="vit_jax",
    version=VERSION,
    description="Vision Transformers in JAX: train, fine-tune, evaluate and use them, from a laptop to a pod.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["vit_jax", "vit_jax.*"]),
    install_requires=[
        "jax>=0.10.2",
        "flax>=0.12",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "chex>=0.1.90",
        "ml_collections>=1.0",
        "numpy>=2",
        "ml_dtypes>=0.5",
        "safetensors>=0.8",
        "flatbuffers>=24",
        "huggingface_hub>=2",
        "tokenizers>=0.22",
        "ftfy>=6.2",
        "pillow>=10.3",
        "pyarrow>=15",
        "scikit-learn>=1.4",
        "matplotlib>=3.8",
        "tqdm>=4.66",
        "tensorboardX>=2.6",
        "tensorflow-datasets>=4.9.7",
        "array_record>=0.5; platform_system != 'Windows'",
    ],
    extras_require={
        "tpu": ["jax[tpu]"],
        "tpu-compile": ["jax[tpu]"],  # the compiler works without a TPU
        "cuda": ["jax[cuda13]"],
        "torch": PEERS,
        "remote": REMOTE,
        "sentencepiece": SENTENCEPIECE,
        "notebooks": [*NOTEBOOKS, "jupyterlab"],
        "test": TEST,
        "dev": [*TEST, "mypy", "ruff"],
    },
    entry_points={"console_scripts": ["vit_jax = vit_jax.cli:main"]},
    classifiers=["License :: OSI Approved :: Apache Software License", "Programming Language :: Python :: 3"],
)
