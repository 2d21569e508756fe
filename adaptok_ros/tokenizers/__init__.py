"""Frozen tokenizers: an image to a grid of normalised latents, and back where possible."""

from adaptok_ros.tokenizers.tokenizer import Tokenizer, TokenizerDescription, TokenizerStream

__all__ = ['Tokenizer', 'TokenizerDescription', 'TokenizerStream']
