"""From packets to dense latents."""
