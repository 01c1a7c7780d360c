"""The model's own similarity is tuned."""
