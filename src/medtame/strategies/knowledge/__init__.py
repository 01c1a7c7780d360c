"""Knowledge guides or is transferred."""
