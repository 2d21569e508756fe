"""What a camera's parameters should be, from footage of it."""
