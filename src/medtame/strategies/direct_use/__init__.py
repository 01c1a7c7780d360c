"""The model as it is."""
