"""Configurations and models."""
