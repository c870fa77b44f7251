"""Source to image."""
