"""The README's tables say what the code does."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()


def test_parameter_tables_match_the_code():
    pytest.importorskip('rclpy', reason='rclpy is missing: the tables are those of the nodes')
    from adaptok_ros.nodes.parameters import readme_tables

    for table in readme_tables().split('\n\n'):
        assert table in README, f'out of date in README.md: {table.splitlines()[0]}'


def test_every_message_field_is_documented():
    for path in (ROOT / 'msg').glob('*.msg'):
        for line in path.read_text().splitlines():
            fields = line.split('#')[0].split()
            if len(fields) == 2 and '=' not in fields[1]:
                assert f'`{fields[1]}`' in README, f'{path.name}: {fields[1]} is not in README.md'


def test_tests_behind_promises_exist():
    named = re.findall(r'`(test_\w+\.py)::(test_\w+)`', (ROOT / 'docs' / 'trust.md').read_text())
    assert len(named) > 10
    for file, test in named:
        assert f'\ndef {test}(' in (ROOT / 'test' / file).read_text(), f'{file}::{test}'


def test_parameter_files_name_real_parameters():
    pytest.importorskip('rclpy', reason='rclpy is missing: the parameters are those of the nodes')
    import yaml

    from adaptok_ros.nodes.parameters import NODES

    names = {node: {p.name for p in table} for node, table in NODES.items()}
    for file in ('adaptok.yaml', 'jetson.yaml', 'cameras.yaml'):
        for node, content in yaml.safe_load((ROOT / 'config' / file).read_text()).items():
            kind = f'{node.rsplit("/", 1)[1]}_node'
            assert set(content['ros__parameters']) <= names[kind], f'{file}: {node}'


def test_training_files_name_real_hyperparameters():
    pytest.importorskip('torch', reason='torch is missing: the training code needs it')
    from adaptok_ros.cli.train import read_config
    from adaptok_ros.training.lit import LITTraining
    from adaptok_ros.training.tokenizer import TokenizerTraining

    for name, kind in (('tokenizer', TokenizerTraining), ('lit', LITTraining)):
        assert read_config(ROOT / 'config' / f'train_{name}.yaml', kind) == kind()
