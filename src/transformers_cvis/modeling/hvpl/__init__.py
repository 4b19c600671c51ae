"""HVPL: hierarchical visual prompts for continual video instance segmentation."""

from .context_encoder import ContextEncoder, ContextEncoderLayer, TreeStateSpace

__all__ = ["ContextEncoder", "ContextEncoderLayer", "TreeStateSpace"]
