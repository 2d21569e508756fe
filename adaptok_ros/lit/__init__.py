"""The Latent Inpainting Transformer: the model, and how it runs on a stream."""
