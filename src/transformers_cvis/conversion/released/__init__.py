"""Families of released checkpoints, one file each: names of their weights, and configurations read off their shapes."""
