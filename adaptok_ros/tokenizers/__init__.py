"""Frozen tokenizers as they run: images to grids of normalised latents, and back."""
