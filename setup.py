# SPDX-License-Identifier: Apache-2.0
"""Build and metadata of the package."""

from pathlib import Path

from setuptools import find_packages, setup

# Read the version without importing the package, whose requirements may not be installed yet.
about: dict[str, str] = {}
exec(Path("src/transformers_cvis/_version.py").read_text(encoding="utf-8"), about)

setup(
    name="transformers-cvis",
    version=about["__version__"],
    description="Video instance segmentation that keeps learning, the Hugging Face way",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The transformers_cvis contributors",
    license="Apache-2.0",
    license_files=["LICENSE", "CITATION.cff"],
    keywords="video instance segmentation, tracking, continual learning, transformers",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    python_requires=">=3.10",
    package_dir={"": "src"},
    packages=find_packages("src"),
    # The command line lies outside of the package, to answer help and mistakes without importing torch.
    py_modules=["transformers_cvis_cli"],
    package_data={"transformers_cvis": ["assets/**/*", "training/recipes/*.yaml", "continual/schedules/*.yaml"]},
    install_requires=[
        "torch>=2.9",
        "torchvision",
        "transformers>=5.10",
        "datasets>=4",
        "huggingface_hub",
        "accelerate",
        "safetensors",
        "pycocotools",
        "kernels",
        "av",
        "scipy",
        "tqdm",
        # Imported directly, so required directly, although other requirements install them as well.
        "numpy",  # arrays of masks, frames and scores
        "Pillow",  # reads and writes frames
        "PyYAML",  # recipes and schedules
    ],
    extras_require={
        "test": ["pytest", "pytest-xdist", "ruff", "numba"],
        "train": ["tensorboard"],
        "numba": ["numba"],  # compiles the tree scan of HVPL on CPU
        "demo": [],
        "dev": ["pytest", "pytest-xdist", "ruff", "tensorboard", "numba"],
    },
    entry_points={"console_scripts": ["transformers-cvis=transformers_cvis_cli:main"]},
)
