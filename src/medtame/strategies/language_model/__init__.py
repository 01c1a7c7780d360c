"""Image features are projected into a language model that writes or ranks the answer."""
