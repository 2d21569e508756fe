"""The shipped graphs compile with TensorRT: parsed and really built, without a GPU.

TensorRT-RTX builds engines ahead of time on machines that have none.
"""

import functools

import pytest

from adaptok_ros.models import SHIPPED, read_description, shipped_models

tensorrt = pytest.importorskip(
    'tensorrt_rtx', reason='tensorrt_rtx is missing: pip install tensorrt-rtx (x86-64 Linux)'
)
PARTS = ('encoder', 'decoder', 'lit')
SMALL, VGA, LARGE = (240, 320), (480, 640), (736, 1280)


@functools.cache
def grids(model):
    """Stride, channels, frames and multiple of the grid that LIT takes."""
    tokenizer = read_description(SHIPPED / model, 'tokenizer.json')
    lit = read_description(SHIPPED / model, 'lit.json')
    return tokenizer['stride'], tokenizer['channels'], lit['frames'], lit['window']


def shapes(model, part, size, batch):
    """Of every input, for images of one size."""
    stride, channels, frames, multiple = grids(model)
    rows, columns = (side // stride for side in size)
    if part == 'encoder':
        return {'image': (batch, *size, 3)}
    if part == 'decoder':
        return {'latents': (batch, rows, columns, channels)}
    window = (batch, frames, *(-(-side // multiple) * multiple for side in (rows, columns)))
    return {'held': (*window, channels), 'kept': window, 'age': window, 'tau': (batch,)}


def build(model, part, profile):
    """Bytes of an engine for a profile of three sizes with a batch each."""
    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(0)
    parser = tensorrt.OnnxParser(network, logger)
    parsed = parser.parse((SHIPPED / model / f'{part}.onnx').read_bytes())
    assert parsed, [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(tensorrt.ComputeCapability.SM86, 0)
    limits = builder.create_optimization_profile()
    bounds = [shapes(model, part, size, batch) for size, batch in profile]
    for name in bounds[0]:
        limits.set_shape(name, *(bound[name] for bound in bounds))
    config.add_optimization_profile(limits)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    return plan.nbytes, network


@pytest.mark.parametrize('part', PARTS)
@pytest.mark.parametrize('model', shipped_models())
@pytest.mark.parametrize('batch', [1, 4])
@pytest.mark.parametrize('profile', ['static', 'dynamic'])
def test_shipped_graph_builds(model, part, batch, profile):
    sizes = (VGA, VGA, VGA) if profile == 'static' else (SMALL, VGA, LARGE)
    batches = (batch, batch, batch) if profile == 'static' else (1, batch, batch)
    size, network = build(model, part, list(zip(sizes, batches)))
    assert size > 100_000
    image = network.get_input(0) if part == 'encoder' else network.get_output(0)
    uint8 = part != 'lit'
    assert (image.dtype == tensorrt.uint8) == uint8
