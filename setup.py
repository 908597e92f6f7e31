"""Beamtag's distribution: `pip install .` gives the `beamtag` command and both packages."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

EXTRAS = {
    # Object stores beyond Google's, which the core knows.
    "s3": ["s3fs>=2024.6"],
    # HEIC pictures, which phones make; its wheels bring libheif and libde265.
    "heic": ["pillow-heif>=0.20"],
    # Tokenizers of SigLIP, multilingual and other models that open_clip takes from transformers.
    "hf": ["transformers>=4.40", "sentencepiece>=0.2"],
    # JPEG decoding on the device (nvJPEG): it comes inside torchvision's ordinary wheels.
    "gpu": ["torchvision>=0.20"],
    # The client that Beam's writer to Milvus needs (deploy/milvus).
    "milvus": ["pymilvus>=3.0"],
    # What submits to Dataflow: of Beam's own `gcp` extra what its runner needs.
    "gcp": ["google-cloud-dataflow-client>=0.13,<0.14", "google-cloud-storage>=2.18"],
}

DEV = [
    "duckdb>=1.1",
    # What moto's S3 server needs of its `server` extra, which brings every other service's too.
    "flask>=3",
    "flask-cors>=4",
    "gcp-storage-emulator>=2024.8",
    "hypothesis>=6.100",
    "jsonschema>=4.20",
    # A Milvus in one process.
    "milvus-lite>=3.2",
    "moto[s3]>=5",
    "mypy>=1.11",
    "pandas>=2.2",
    "pandas-stubs",
    "pytest>=8.3",
    "pytest-timeout>=2.3",
    "python-hcl2>=7",
    "resvg-py>=0.1.5",
    "ruff>=0.6",
    # What the figures of `beamtag evaluate` are compared with.
    "scikit-learn>=1.5",
    # Reads the SQL of warehouses that cannot be had here.
    "sqlglot>=30",
    "types-PyYAML",
]

setup(
    name="beamtag",
    version="0.1.0",
    description="Tag media archives by what is in them, with labels that are only words.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["pipelines*", "transforms*"]),
    include_package_data=True,
    package_data={
        "pipelines": ["py.typed"],
        "transforms": ["py.typed", "data/**/*", "data/*"],
    },
    install_requires=[
        "aiohttp>=3.9",
        "apache-beam>=2.77,<2.78",
        # What requests uses for the same: the encoding of bytes that do not say theirs.
        "charset-normalizer>=3.3",
        "filelock>=3.13",
        "fsspec>=2024.6",
        "gcsfs>=2024.6",
        "numpy>=1.26",
        "open_clip_torch>=3.3,<4",
        "pillow>=11.3",
        "pyarrow>=17",
        "pyyaml>=6.0",
        "rich>=13.7",
        "safetensors>=0.4.5",
        # JPEG at a fraction of its size, by libjpeg-turbo, which its wheels bring.
        "simplejpeg>=1.8",
        "tenacity>=9",
        "torch>=2.6",
        "torchvision>=0.21",
    ],
    extras_require={
        **EXTRAS,
        "dev": [
            *(name for extra in ("s3", "heic", "hf", "gcp", "milvus") for name in EXTRAS[extra]),
            *DEV,
        ],
    },
    entry_points={"console_scripts": ["beamtag = pipelines.cli:run"]},
    zip_safe=False,
)
