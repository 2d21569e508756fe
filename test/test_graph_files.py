"""Graphs that keep tensors in other files (ONNX's external data)."""

import hashlib
import json
import random
import shutil

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from adaptok_ros.footage.scene.scene import Scene
from adaptok_ros.models.description import LITDescription, TokenizerDescription
from adaptok_ros.models.folders import ModelError, find_model, graph_sha256, sha256
from adaptok_ros.models.graph_files import external_files
from adaptok_ros.tokenizers.tokenizer import Tokenizer

MODEL = 'adaptok-tiny'


@pytest.fixture
def folder(tmp_path):
    """A copy of a shipped model."""
    return shutil.copytree(find_model(MODEL), tmp_path / MODEL)


def move_tensors(graph, location):
    """Move all tensors of a graph into a file beside it."""
    model = onnx.load(graph)
    onnx.save_model(model, graph, save_as_external_data=True, location=location, size_threshold=0)


def rename(graph, location):
    """Name another file as that of the tensors."""
    model = onnx.load(graph, load_external_data=False)
    for tensor in model.graph.initializer:
        onnx.external_data_helper.set_external_data(tensor, location)
        tensor.ClearField('raw_data')
    graph.write_bytes(model.SerializeToString())


def describe(folder, name, *files):
    """List files with the hashes that they have."""
    path = folder / name
    fields = json.loads(path.read_text())
    fields['files'].update((file, sha256(folder / file)) for file in files)
    path.write_text(json.dumps(fields))


def test_shipped_graphs_are_whole():
    graphs = list(find_model(MODEL).glob('*.onnx'))
    assert graphs and not any(map(external_files, graphs))


def test_listed_file_is_verified_and_run(folder):
    image = Scene().frame(0)
    expected = Tokenizer(MODEL, 'onnxruntime', on_cpu=True).encode(image)
    move_tensors(folder / 'encoder.onnx', 'encoder.onnx.data')
    describe(folder, 'tokenizer.json', 'encoder.onnx', 'encoder.onnx.data')
    tokenizer = Tokenizer(str(folder), 'onnxruntime', on_cpu=True)
    np.testing.assert_array_equal(tokenizer.encode(image), expected)

    data = bytearray((folder / 'encoder.onnx.data').read_bytes())
    data[100] ^= 1
    (folder / 'encoder.onnx.data').write_bytes(data)
    with pytest.raises(ModelError, match=r'encoder\.onnx\.data: its SHA-256 differs'):
        TokenizerDescription.load(folder)


def test_file_that_is_not_listed(folder):
    move_tensors(folder / 'encoder.onnx', 'weights')
    describe(folder, 'tokenizer.json', 'encoder.onnx')
    with pytest.raises(ModelError, match=r"encoder\.onnx: has tensors in 'weights'; .* lists"):
        TokenizerDescription.load(folder)


@pytest.mark.parametrize(
    'location',
    ['/etc/passwd', '../weights', 'sub/weights', '..', '.', '', 'a\\b', 'a\nb', 'x/../weights'],
)
def test_file_elsewhere(location, folder):
    (folder.parent / 'weights').write_bytes(bytes(1 << 20))
    rename(folder / 'lit.onnx', location)
    describe(folder, 'lit.json', 'lit.onnx')
    with pytest.raises(ModelError, match=r'lit\.onnx: has tensors in .* names of files beside it'):
        LITDescription.load(folder)


def test_symbolic_link(folder):
    move_tensors(folder / 'encoder.onnx', 'weights')
    (folder / 'weights').rename(folder.parent / 'elsewhere')
    (folder / 'weights').symlink_to(folder.parent / 'elsewhere')
    describe(folder, 'tokenizer.json', 'encoder.onnx', 'weights')
    with pytest.raises(ModelError, match=r'weights: a symbolic link; allowed: a file'):
        TokenizerDescription.load(folder)


def test_identity_of_a_graph_covers_all_of_it(folder):
    graph = folder / 'lit.onnx'
    assert graph_sha256(graph) == hashlib.sha256(graph.read_bytes()).hexdigest()
    move_tensors(graph, 'lit.onnx.data')
    describe(folder, 'lit.json', 'lit.onnx', 'lit.onnx.data')
    digest, lit = graph_sha256(graph), LITDescription.load(folder).id
    (folder / 'lit.onnx.data').write_bytes((folder / 'lit.onnx.data').read_bytes()[::-1])
    describe(folder, 'lit.json', 'lit.onnx.data')
    assert graph_sha256(graph) != digest and LITDescription.load(folder).id != lit
    (folder / 'lit.onnx.data').unlink()
    with pytest.raises(ModelError, match=r'lit\.onnx\.data'):
        graph_sha256(graph)


def elsewhere(location):
    """A tensor in another file."""
    tensor = numpy_helper.from_array(np.ones(4, np.float32), 'x')
    onnx.external_data_helper.set_external_data(tensor, location, offset=0, length=16)
    tensor.ClearField('raw_data')
    return tensor


def constant(location):
    return helper.make_node('Constant', [], ['y'], value=elsewhere(location))


def sparse(location):
    indices = numpy_helper.from_array(np.arange(4), 'i')
    return helper.make_sparse_tensor(elsewhere(location), indices, [8])


def model(nodes=(), tensors=(), sparse_tensors=(), functions=()):
    graph = helper.make_graph(nodes, 'g', [], [], tensors, sparse_initializer=sparse_tensors)
    return helper.make_model(graph, functions=functions)


def branches(node):
    graph = helper.make_graph([node], 'b', [], [])
    return helper.make_node('If', ['c'], ['z'], then_branch=graph, else_branch=graph)


PLACES = {
    'initializer': model(tensors=[elsewhere('there')]),
    'constant': model([constant('there')]),
    'branch of a branch': model([branches(branches(constant('there')))]),
    'sparse initializer': model(sparse_tensors=[sparse('there')]),
    'sparse constant': model(
        [helper.make_node('Constant', [], ['y'], sparse_value=sparse('there'))]
    ),
    'function': model(
        functions=[helper.make_function('d', 'f', [], ['y'], [constant('there')], [], [])]
    ),
    'list': model([helper.make_node('N', [], ['y'], values=[elsewhere('a'), elsewhere('there')])]),
}


@pytest.mark.parametrize('place', PLACES)
def test_every_place_of_a_tensor(place, tmp_path):
    graph = tmp_path / 'graph.onnx'
    graph.write_bytes(PLACES[place].SerializeToString())
    assert external_files(graph)[-1] == 'there'


def test_training_graph(tmp_path):
    whole = model()
    whole.training_info.add().algorithm.initializer.append(elsewhere('there'))
    graph = tmp_path / 'graph.onnx'
    graph.write_bytes(whole.SerializeToString())
    assert external_files(graph) == ['there']


def test_the_word_alone_is_no_file(tmp_path):
    tensor = numpy_helper.from_array(np.ones(4, np.float32), 'location')
    graph = tmp_path / 'graph.onnx'
    graph.write_bytes(model(tensors=[tensor]).SerializeToString())
    assert external_files(graph) == []


def test_damaged_graph_is_one_error(tmp_path):
    graph = tmp_path / 'graph.onnx'
    whole = model([constant('there')], [elsewhere('here')]).SerializeToString()
    chance = random.Random(0)
    refused = 0
    for case in range(2000):
        data = bytearray(whole[: chance.randrange(len(whole))] if case % 2 else whole)
        for _ in range(chance.randrange(4)):
            if data:
                data[chance.randrange(len(data))] = chance.randrange(256)
        graph.write_bytes(data)
        try:
            external_files(graph)
        except ValueError:
            refused += 1
    assert refused > 200
