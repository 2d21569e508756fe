"""A robot's cameras as a stream of only the visual tokens that changed."""
