"""The ROS-free part for pip: `pip install .`; the ROS package is built by CMakeLists.txt."""

from pathlib import Path
from xml.etree import ElementTree

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def requirements(name: str) -> list[str]:
    """Return the lines of one file in requirements/ without the comments."""
    text = (HERE / 'requirements' / f'{name}.txt').read_text(encoding='utf-8')
    lines = (line.split('#')[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


manifest = ElementTree.parse(HERE / 'package.xml')

setup(
    name=manifest.findtext('name'),
    version=manifest.findtext('version'),
    description="A robot's cameras as a stream of only the visual tokens that changed",
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=[*find_packages(include=['adaptok_ros', 'adaptok_ros.*']), 'adaptok_ros.interfaces'],
    package_dir={'adaptok_ros.interfaces': 'msg'},  # bags are read from the definitions
    package_data={
        'adaptok_ros': ['models/**/*', 'monitor/*.html'],
        'adaptok_ros.interfaces': ['*.msg'],
    },
    zip_safe=False,
    install_requires=requirements('runtime'),
    extras_require={
        'train': ['torch>=2.6', 'onnx>=1.16'],
        'fleet': ['ray>=2.10'],
        'store': ['fsspec>=2023.1'],  # and s3fs, gcsfs … for what lies there
        'rerun': ['rerun-sdk>=0.24'],
        'watch': ['rich>=13'],  # adaptok watch --terminal
        'zenoh': ['eclipse-zenoh>=1.1'],  # adaptok_ros.zenoh
        'tokenizers': requirements('tokenizers'),
        'test': requirements('test'),
    },
    entry_points={'console_scripts': ['adaptok = adaptok_ros.cli:main']},
)
