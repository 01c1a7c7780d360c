"""Image and text features meet inside a task network."""
