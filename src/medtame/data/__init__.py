"""Manifests, images, splits, draws and the phantom."""
