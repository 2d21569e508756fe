"""The selection step on a device: one Triton kernel, and the same in torch.

:class:`~adaptok_ros.sending.kernels.selector.DeviceSelector` is to latents on a device what
:class:`~adaptok_ros.sending.selection.Selector` is to arrays. The arithmetic is stated in
:mod:`adaptok_ros.sending.selection`. Importing this package needs nothing; its modules need torch.
"""
