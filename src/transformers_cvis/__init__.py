"""Video instance segmentation that keeps learning, the Hugging Face way."""

__version__ = "0.1.0"
