"""Encoding only what changed: the cost of an image follows its content.

A latent depends on the pixels inside its receptive field and on nothing else, so it can only
change where one of them did. :class:`~adaptok_ros.tokenizers.gating.gated.GatedEncoder` compares every image with the pixels *as
last encoded* (not with the previous image: a slow drift adds up until it counts), finds the
blocks of ``stride`` x ``stride`` pixels that changed, and computes, layer by layer, the
positions next to those whose values in the layer before changed.

With ``Gating.EXACT`` any difference is a change, and the latents are those of the dense
encoder up to float rounding. With ``Gating.NOISE`` blocks and activations changed when
they differ from the kept ones by more than the camera's noise alone makes them differ (see
``changes.NOISE_MARGIN``); what differs by less is not kept, so that it too adds up. Nor is a
position computed before the changes around it are expected to make that much of a difference
there (see ``ActiveEncoder._due``).

Caching activations and cutting small changes off layer by layer is the idea of DeltaCNN
(Parger et al., CVPR 2022), which computes all positions around a change; no halo is computed
twice, as encoding tiles with their surroundings would.
"""
