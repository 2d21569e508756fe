"""Graphs written from weights: both forms, what float16 may cost, and folders without it."""

import json
import shutil

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='torch is missing: graphs are exported from it')
onnx = pytest.importorskip('onnx', reason='onnx is missing: graphs are exported with it')

from adaptok_ros.cli import main
from adaptok_ros.models.description import TokenizerDescription
from adaptok_ros.models.folders import SHIPPED, graph_files, read_description, sha256
from adaptok_ros.models.normalisation import Normalisation
from adaptok_ros.networks.errors import ExportError
from adaptok_ros.networks.export import Part, gather_tensors, run_graph
from adaptok_ros.networks.half import check_types, largest_delta
from adaptok_ros.networks.lit import LatentInpaintingTransformer
from adaptok_ros.networks.model_folder import export_lit, export_tokenizer
from adaptok_ros.networks.tiny import TinyAutoencoder

BOTH = ['encoder.onnx', 'encoder.float16.onnx', 'decoder.onnx', 'decoder.float16.onnx']
LIT = ['lit.onnx', 'lit.float16.onnx']


def small(scale=1.0):
    """An untrained tokenizer whose weights are ``scale`` times what they were."""
    torch.manual_seed(0)
    model = TinyAutoencoder(
        channels=4,
        encoder_width=8,
        encoder_hidden=8,
        encoder_blocks=1,
        decoder_width=8,
        decoder_blocks=1,
    )
    with torch.no_grad():
        model.encoder[1].weight.mul_(scale)
    return model


def spread(std):
    return Normalisation.from_spread([0.0] * 4, [std] * 4)


def test_both_forms_are_written(tmp_path, capsys):
    export_tokenizer(small(), spread(0.1), 'small', tmp_path)
    assert list(read_description(tmp_path, 'tokenizer.json')['files'])[1:] == BOTH
    assert capsys.readouterr().out == ''
    image = torch.randint(0, 256, (3, 40, 24, 3), dtype=torch.uint8)
    full, half = (run_graph(tmp_path / file, {'image': image}) for file in BOTH[:2])
    assert full.shape == half.shape == (3, 5, 3, 4) and half.dtype == np.float32
    assert 0 < largest_delta(half, full) < 0.01
    for file in (BOTH[1], BOTH[3]):
        check_types(tmp_path / file)


@pytest.mark.parametrize(
    ('scale', 'reason'), [(1e6, 'nan from float32 in torch'), (300.0, 'from float32 in torch')]
)
def test_a_model_that_overflows_or_rounds_too_much_has_no_half(tmp_path, capsys, scale, reason):
    std = 0.1 if scale == 300.0 else 0.1 * scale
    export_tokenizer(small(scale), spread(std), 'small', tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith('encoder.float16.onnx is left out: ') and reason in lines[0]
    assert list(read_description(tmp_path, 'tokenizer.json')['files'])[1:][0] == 'encoder.onnx'
    assert TokenizerDescription.load(tmp_path).can_decode
    assert not (tmp_path / 'encoder.float16.onnx').exists()


class Mixed(torch.nn.Module):
    """Two layers, in the types given."""

    def __init__(self, *types):
        super().__init__()
        self.types = types
        self.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4, dtype=kind) for kind in types)

    def forward(self, x):
        for layer, kind in zip(self.layers, self.types):
            x = layer(x.to(kind))
        return x.float()


@pytest.mark.parametrize(
    ('types', 'message'),
    [
        ((torch.float16, torch.float32), 'is not in float16 but what it multiplies was'),
        ((torch.float32, torch.float32), 'nothing is computed in float16'),
        ((torch.float32, torch.float16), None),
    ],
)
def test_types_are_checked(tmp_path, types, message):
    path = tmp_path / 'graph.onnx'
    torch.onnx.export(Mixed(*types), (torch.ones(1, 4),), str(path), dynamo=False)
    if message is None:
        check_types(path)
        return
    with pytest.raises(ExportError, match=message):
        check_types(path)


def test_untyped_mixtures_are_not_valid(tmp_path):
    path = tmp_path / 'graph.onnx'
    torch.onnx.export(
        Mixed(torch.float16), (torch.ones(1, 4),), str(path), dynamo=False, opset_version=17
    )
    model = onnx.load(path)
    (cast,) = (node for node in model.graph.node if node.output[0].endswith('Cast_output_0'))
    for node in model.graph.node:
        node.input[:] = ['x' if name == cast.output[0] else name for name in node.input]
    model.graph.node.remove(cast)
    model.graph.input[0].name = 'x'
    onnx.save(model, path)
    with pytest.raises((onnx.checker.ValidationError, onnx.shape_inference.InferenceError)):
        check_types(path)


def test_tensors_of_a_large_model_come_into_one_file(tmp_path):
    """As torch scatters them above 2 GB: a file for each, whatever the graph."""
    whole = SHIPPED / 'adaptok-tiny' / 'encoder.onnx'
    graph, half = tmp_path / 'encoder.onnx', tmp_path / 'encoder.float16.onnx'
    for path in (graph, half):
        onnx.save_model(
            onnx.load(whole),
            path,
            save_as_external_data=True,
            all_tensors_to_one_file=False,
            size_threshold=0,
        )
        gather_tensors(path)
    assert graph_files(graph) == ['encoder.onnx', 'encoder.onnx.data']
    assert {path.name for path in tmp_path.iterdir()} == {
        file for path in (graph, half) for file in (path.name, f'{path.name}.data')
    }
    image = torch.randint(0, 256, (1, 32, 24, 3), dtype=torch.uint8)
    expected = run_graph(whole, {'image': image})
    for path in (graph, half):
        assert np.array_equal(run_graph(path, {'image': image}), expected)


class Off(torch.nn.Module):
    """Its graph adds 0.003, which is less than the next number in float32 is from 65504."""

    def forward(self, x):
        return x + 0.003 if torch.onnx.is_in_onnx_export() else x + 0.0


@pytest.mark.parametrize('value', [1.0, 65504.0])
def test_graphs_may_round_the_largest_values_otherwise(tmp_path, value):
    values = torch.full((1, 4), value)
    part = Part('lit', lambda half: Off(), {'x': values}, 'y', {}, 1e-3, 0.01)
    if value > 1:
        assert part.export(tmp_path) == ['lit.onnx']
        assert (run_graph(tmp_path / 'lit.onnx', part.inputs) > value).all()
        return
    with pytest.raises(ExportError, match=r'from torch; allowed: 0\.001'):
        part.export(tmp_path)


def test_lit_that_overflows_has_no_half(tmp_path, capsys):
    torch.manual_seed(0)
    model = LatentInpaintingTransformer(4)
    torch.nn.init.normal_(model.head.weight)
    with torch.no_grad():
        model.blocks[0].mix.weight.mul_(1e8)
    export_lit(model, 'small@0', tmp_path)
    assert capsys.readouterr().out.startswith('lit.float16.onnx is left out: nan')
    assert list(read_description(tmp_path, 'lit.json')['files']) == ['lit.safetensors', LIT[0]]


def test_lit_in_half_keeps_what_surrounds_the_network():
    model = LatentInpaintingTransformer(4)
    half = model.in_half()
    assert model.head.weight.dtype is torch.float32
    assert half.embed.weight.dtype is torch.float32
    kinds = {p.dtype for name, p in half.named_parameters() if name.split('.')[0] != 'embed'}
    assert kinds == {torch.float16}


def test_graphs_are_written_anew_from_weights(tmp_path, capsys):
    folder = tmp_path / 'model'
    shutil.copytree(SHIPPED / 'adaptok-tiny', folder)
    before = {
        name: json.loads((folder / name).read_text()) for name in ('tokenizer.json', 'lit.json')
    }
    for path in folder.glob('*.float16.onnx'):
        path.unlink()
    for name, fields in before.items():
        files = {f: h for f, h in fields['files'].items() if not f.endswith('.float16.onnx')}
        (folder / name).write_text(json.dumps({**fields, 'files': files}))
    TokenizerDescription.load(folder)  # as folders were before there was float16
    assert main(['export', str(folder)]) == 0
    assert capsys.readouterr().out == f'written: {", ".join((*BOTH, *LIT))}\n'
    for name, graphs in (('tokenizer.json', BOTH), ('lit.json', LIT)):
        after = read_description(folder, name)
        assert list(after['files'])[1:] == graphs
        assert {**after, 'files': 0} == {**before[name], 'files': 0}
    for path in (SHIPPED / 'adaptok-tiny').glob('*.safetensors'):
        assert sha256(folder / path.name) == sha256(path)
    image = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    old, new = (
        run_graph(root / 'encoder.onnx', {'image': image})
        for root in (folder, SHIPPED / 'adaptok-tiny')
    )
    np.testing.assert_allclose(old, new, atol=1e-5)


def test_a_folder_without_graphs_is_not_exported(tmp_path, capsys):
    (tmp_path / 'tokenizer.safetensors').write_bytes(b'')
    (tmp_path / 'config.json').write_text('{}')
    fields = {
        'name': 'wan',
        'family': 'wan',
        'stride': 8,
        'channels': 1,
        'mean': [0],
        'whitening': [1],
        'receptive_field': 0,
        'temporal_stride': 4,
        'files': {
            name: sha256(tmp_path / name) for name in ('tokenizer.safetensors', 'config.json')
        },
    }
    (tmp_path / 'tokenizer.json').write_text(json.dumps(fields))
    assert main(['export', str(tmp_path)]) == 1
    assert 'family wan runs in torch and has no graphs' in capsys.readouterr().err
    assert main(['export', str(tmp_path / 'missing')]) == 1
    assert 'neither a shipped model' in capsys.readouterr().err
