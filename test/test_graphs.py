"""The shipped graphs: what float16 costs, and that TensorRT builds them, without a GPU.

TensorRT-RTX builds engines ahead of time on machines that have none.
"""

import functools
from collections import Counter

import numpy as np
import onnxruntime
import pytest

from adaptok_ros.footage.scene.scene import Scene
from adaptok_ros.models.folders import SHIPPED, read_description, shipped_models

HALF = '.float16'
SMALL, VGA, LARGE = (240, 320), (480, 640), (736, 1280)
GRAPHS = [
    (model, file.removesuffix('.onnx'))
    for model in shipped_models()
    for description in ('tokenizer.json', 'lit.json')
    for file in read_description(SHIPPED / model, description)['files']
    if file.endswith('.onnx')
]
HALVES = [(model, name.removesuffix(HALF)) for model, name in GRAPHS if name.endswith(HALF)]


@functools.cache
def grids(model):
    """Stride, channels, and frames of the window that LIT takes."""
    tokenizer = read_description(SHIPPED / model, 'tokenizer.json')
    lit = read_description(SHIPPED / model, 'lit.json')
    return tokenizer['stride'], tokenizer['channels'], lit['frames']


def shapes(model, part, size, batch):
    """Of every input, for images of one size."""
    stride, channels, frames = grids(model)
    rows, columns = (side // stride for side in size)
    if part == 'encoder':
        return {'image': (batch, *size, 3)}
    if part == 'decoder':
        return {'latents': (batch, rows, columns, channels)}
    window = (batch, frames, rows, columns)
    return {'held': (*window, channels), 'kept': window, 'age': window, 'tau': (batch,)}


@pytest.mark.parametrize('model', shipped_models())
def test_tokenizers_are_shipped_in_both_forms(model):
    names = [name for owner, name in GRAPHS if owner == model]
    for part in ('encoder', 'decoder'):
        assert part in names and part + HALF in names


# What float16 costs


@functools.cache
def session(model, name):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        str(SHIPPED / model / f'{name}.onnx'), options, providers=['CPUExecutionProvider']
    )


def compare(model, part, inputs):
    """Outputs of the float32 form and of the other."""
    return (session(model, name).run(None, inputs)[0] for name in (part, part + HALF))


def latents(model):
    """Of a frame of the scene, ``[1, H, W, C]``."""
    image = Scene(320, 240).frame(40)[None]
    return session(model, 'encoder').run(None, {'image': image})[0]


@pytest.mark.parametrize('model', [model for model, part in HALVES if part == 'encoder'])
def test_latents_in_half_are_far_within_tau(model):
    scene = Scene(320, 240)
    images = np.stack([scene.frame(0), scene.frame(90)])
    expected, found = compare(model, 'encoder', {'image': images})
    assert found.dtype == np.float32
    assert 0 < np.abs(found - expected).mean(axis=-1).max() < 0.005


@pytest.mark.parametrize('model', [model for model, part in HALVES if part == 'decoder'])
def test_pixels_in_half_are_one_grey_level_away_at_most(model):
    expected, found = compare(model, 'decoder', {'latents': latents(model)})
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize('model', [model for model, part in HALVES if part == 'lit'])
@pytest.mark.parametrize('value', [0.0, 65504.0])
def test_lit_in_half_passes_on_what_was_sent(model, value):
    """Also where values, as only a broken model has them, would not fit into float16."""
    rng = np.random.default_rng(0)
    inputs = {
        name: np.zeros(shape, np.float32) for name, shape in shapes(model, 'lit', SMALL, 1).items()
    }
    inputs['tau'][:] = 0.1
    inputs['age'][:] = rng.integers(0, 256, inputs['age'].shape)
    inputs['kept'][:] = rng.random(inputs['kept'].shape) < 0.1
    grid = latents(model)
    held = inputs['held'][:, :, : grid.shape[1], : grid.shape[2]]
    held[:] = grid[:, None] + rng.normal(0, 0.1, held.shape)
    held[:, :, ::9, ::9] += value
    expected, found = compare(model, 'lit', inputs)
    sent, current = inputs['kept'][:, -1] > 0, inputs['held'][:, -1]
    np.testing.assert_array_equal(found[sent], current[sent])
    assert np.abs(found - expected).mean(axis=-1).max() < 0.01 + 1e-6 * value
    assert np.abs(found - current).mean(axis=-1).max() <= 0.1 + 1e-5 + 1e-6 * value


# TensorRT


@pytest.fixture(scope='module')
def tensorrt():
    return pytest.importorskip(
        'tensorrt_rtx', reason='tensorrt_rtx is missing: pip install tensorrt-rtx (x86-64 Linux)'
    )


def build(tensorrt, model, name, profile):
    """Bytes of an engine for a profile of three sizes with a batch each, and its network."""
    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(0)
    parser = tensorrt.OnnxParser(network, logger)
    parsed = parser.parse((SHIPPED / model / f'{name}.onnx').read_bytes())
    assert parsed, [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(tensorrt.ComputeCapability.SM86, 0)
    limits = builder.create_optimization_profile()
    part = name.removesuffix(HALF)
    bounds = [shapes(model, part, size, batch) for size, batch in profile]
    for tensor in bounds[0]:
        limits.set_shape(tensor, *(bound[tensor] for bound in bounds))
    config.add_optimization_profile(limits)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    return plan.nbytes, network


@pytest.mark.parametrize(('model', 'name'), GRAPHS)
@pytest.mark.parametrize('batch', [1, 4])
@pytest.mark.parametrize('profile', ['static', 'dynamic'])
def test_shipped_graph_builds(tensorrt, model, name, batch, profile):
    sizes = (VGA, VGA, VGA) if profile == 'static' else (SMALL, VGA, LARGE)
    batches = (batch, batch, batch) if profile == 'static' else (1, batch, batch)
    size, network = build(tensorrt, model, name, list(zip(sizes, batches)))
    assert size > 100_000
    part = name.removesuffix(HALF)
    types = {'encoder': ('UINT8', 'FLOAT'), 'decoder': ('FLOAT', 'UINT8')}
    inputs, output = types.get(part, ('FLOAT', 'FLOAT'))
    assert {network.get_input(i).dtype.name for i in range(network.num_inputs)} == {inputs}
    assert network.get_output(0).dtype.name == output
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    assert not any(layer.type == tensorrt.LayerType.NON_ZERO for layer in layers)
    products = Counter(
        layer.get_output(0).dtype.name
        for layer in layers
        if layer.type in (tensorrt.LayerType.CONVOLUTION, tensorrt.LayerType.MATRIX_MULTIPLY)
    )
    if name == part:
        assert set(products) == {'FLOAT'}
    else:
        # What normalises, and LIT's embedding, are in float32.
        assert products['HALF'] > 5 and products['FLOAT'] == 1
