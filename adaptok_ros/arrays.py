"""The array types that most of the package shares."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Image: TypeAlias = NDArray[np.uint8]
"""``[h, w, 3]`` RGB."""

Latents: TypeAlias = NDArray[np.float32]
"""``[H, W, C]`` normalised latents: a token is one contiguous row of C numbers."""

Mask: TypeAlias = NDArray[np.bool_]
"""``[H, W]`` or ``[P]``, one for each position of a grid."""

SMALLEST_SIDE, LARGEST_SIDE = 8, 8192
"""Rows or columns that an image may have."""
