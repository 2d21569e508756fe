"""Which shapes an engine takes: of one size of images, or of a range of sizes."""

from __future__ import annotations

from collections.abc import Mapping

from adaptok_ros.engines.errors import EngineError
from adaptok_ros.engines.interface import GraphRequest, Shape
from adaptok_ros.models.description import LITDescription, TokenizerDescription

SMALLEST, USUAL, LARGEST = (64, 64), (480, 640), (1088, 1920)
"""Height and width of images: what an engine for any size takes at least, is tuned for, and takes
at most; of all three, whole positions."""

Limits = tuple[Shape, Shape, Shape]
"""Smallest, usual and largest shape of an input."""


def profile(request: GraphRequest) -> dict[str, Limits]:
    """Limits of every input of a graph.

    Where the tokenizer takes images of one size, all three are that size; so they are for an
    encoder whose request names a size. Decoder and LIT take a range otherwise: who runs them does
    not know what will be sent. ``batch`` is the most images at once in any case.

    :raises EngineError: no such part, or a size or batch below 1
    :raises ModelError: the folder does not describe the model
    """
    if request.batch < 1 or min(request.image_size or (1,)) < 1:
        raise EngineError(
            f'image_size is {request.image_size}, batch is {request.batch}; allowed: 1 or more'
        )
    tokenizer = TokenizerDescription.load(request.folder)
    size = tokenizer.image_size or (request.image_size if request.part == 'encoder' else None)
    lit = LITDescription.load(request.folder) if request.part == 'lit' else None
    batches = (1, request.batch, request.batch)
    limits = [
        _shapes(request.part, tokenizer, lit, size_, batch)
        for size_, batch in zip((size,) * 3 if size else (SMALLEST, USUAL, LARGEST), batches)
    ]
    return {name: (limits[0][name], limits[1][name], limits[2][name]) for name in limits[0]}


def _shapes(
    part: str,
    tokenizer: TokenizerDescription,
    lit: LITDescription | None,
    size: tuple[int, int],
    batch: int,
) -> Mapping[str, Shape]:
    """Of every input, for ``batch`` images of one size."""
    rows, columns = tokenizer.grid(*size)
    if part == 'encoder':
        return {'image': (batch, rows * tokenizer.stride, columns * tokenizer.stride, 3)}
    if part == 'decoder':
        return {'latents': (batch, rows, columns, tokenizer.channels)}
    if lit is None:
        raise EngineError(f'part is {part!r}; allowed: encoder, decoder, lit')
    window = (batch, lit.frames, rows, columns)
    return {'held': (*window, lit.channels), 'kept': window, 'age': window, 'tau': (batch,)}
