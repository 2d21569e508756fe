"""Descriptions of LIT, read without running anything."""

import hashlib
import json
import shutil

import pytest

from adaptok_ros.models.description import LITDescription, TokenizerDescription
from adaptok_ros.models.folders import ModelError, find_model, shipped_models

MODEL = 'adaptok-tiny'


@pytest.fixture
def folder(tmp_path):
    """A copy of a shipped model."""
    return shutil.copytree(find_model(MODEL), tmp_path / MODEL)


def change(folder, **changes):
    """Change fields of its ``lit.json``; ``...`` removes one."""
    path = folder / 'lit.json'
    fields = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in fields.items() if value is not ...}))


@pytest.mark.parametrize('model', shipped_models())
def test_shipped_lit_belongs_to_its_tokenizer(model):
    folder = find_model(model)
    fields = json.loads((folder / 'lit.json').read_text())
    assert LITDescription.load(folder) == LITDescription(
        id=f'lit@{fields["files"]["lit.onnx"][:12]}',
        tokenizer=TokenizerDescription.load(folder).id,
        frames=fields['frames'],
        reach=fields['reach'],
        channels=fields['channels'],
    )


def test_no_lit(folder):
    (folder / 'lit.json').unlink()
    with pytest.raises(ModelError, match=r'no lit\.json, so no LIT .* use mode hold'):
        LITDescription.load(folder)


@pytest.mark.parametrize(('field', 'least'), [('frames', 2), ('reach', 1), ('channels', 1)])
@pytest.mark.parametrize('value', [..., None, [], 'x', 1.5, 0, -1])
def test_number_that_is_none_is_named(field, least, value, folder):
    change(folder, **{field: value})
    with pytest.raises(ModelError, match=rf'lit\.json: {field} is .*; allowed: {least} or more'):
        LITDescription.load(folder)


@pytest.mark.parametrize(
    'changes', [{'tokenizer': 'other@0123456789ab'}, {'tokenizer': ...}, {'channels': 17}]
)
def test_lit_of_another_tokenizer(changes, folder):
    change(folder, **changes)
    with pytest.raises(ModelError, match=rf'made for .* the tokenizer is {MODEL}@\w+ with 16'):
        LITDescription.load(folder)


def test_tokenizer_that_is_damaged(folder):
    (folder / 'tokenizer.json').write_text('{}')
    with pytest.raises(ModelError, match=r'tokenizer\.json'):
        LITDescription.load(folder)


def test_exchanged_graph(folder):
    (folder / 'lit.onnx').write_bytes(b'another graph')
    with pytest.raises(ModelError, match=r'lit\.onnx: its SHA-256 differs'):
        LITDescription.load(folder)


def test_graph_that_is_not_listed(folder):
    weights = folder / 'lit.safetensors'
    change(folder, files={weights.name: hashlib.sha256(weights.read_bytes()).hexdigest()})
    with pytest.raises(ModelError, match=r'files does not list lit\.onnx'):
        LITDescription.load(folder)


@pytest.mark.parametrize('text', ['[' * 100_000, '{"a":' * 100_000, '9' * 10_000, '\udcff'])
@pytest.mark.parametrize('name', ['tokenizer.json', 'lit.json'])
def test_json_that_is_none_or_too_deep(name, text, folder):
    (folder / name).write_bytes(text.encode('utf-8', 'surrogateescape'))
    with pytest.raises(ModelError, match=rf'{name}: '):
        LITDescription.load(folder)
