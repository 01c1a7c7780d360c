"""Features: the cached encoder and the store on disk."""
