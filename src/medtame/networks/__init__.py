"""Torch blocks, without any knowledge of tasks and methods."""
