"""What `make` installs is pinned with hashes, and the pins fit what the package declares."""

import itertools
import re
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FOLDER = Path(__file__).parents[1] / 'requirements'
PYTHONS = ('3.10', '3.11', '3.12', '3.13', '3.14')
MACHINES = ('x86_64', 'aarch64')
# What each lock is made of; torch is not in them, see tools/lock.sh.
SOURCES = {
    'core': ['runtime', 'test'],
    'kilted': ['kilted', 'build', 'runtime'],
    'jazzy': ['jazzy', 'build', 'runtime'],
    'lint': ['lint'],
    'tokenizers': ['tokenizers'],
    'lowest': ['runtime', 'test'],
}
HASH = re.compile(r' --hash=sha256:[0-9a-f]{64}')

pytestmark = pytest.mark.skipif(
    not (FOLDER / 'locked').is_dir(), reason='the requirements are not beside the tests'
)


def lines(name):
    """Requirements of a file, each with its options in one line and without comments."""
    text = re.sub(r'\s*\\\n\s*', ' ', (FOLDER / f'{name}.txt').read_text())
    found = (re.split(r'(?:^|\s)#', line)[0].strip() for line in text.splitlines())
    return [line for line in found if line and not line.startswith('-')]


def environments(lock):
    pythons = PYTHONS[:1] if lock == 'lowest' else PYTHONS
    machines = MACHINES[:1] if lock in ('lowest', 'kilted', 'jazzy') else MACHINES
    for python, machine in itertools.product(pythons, machines):
        yield default_environment() | {
            'python_version': python,
            'python_full_version': f'{python}.4',
            'platform_machine': machine,
            'sys_platform': 'linux',
            'platform_system': 'Linux',
        }


def applies(requirement, environment):
    return requirement.marker is None or requirement.marker.evaluate(environment)


@pytest.mark.parametrize('lock', SOURCES)
def test_every_pin_is_exact_and_has_hashes(lock):
    for line in lines(f'locked/{lock}'):
        assert HASH.search(line), f'{line[:60]}: run tools/lock.sh'
        (specifier,) = Requirement(HASH.sub('', line)).specifier
        assert specifier.operator == '=='


@pytest.mark.parametrize('lock', SOURCES)
def test_the_pins_are_of_what_is_declared(lock):
    pins = [Requirement(HASH.sub('', line)) for line in lines(f'locked/{lock}')]
    declared = [Requirement(line) for name in SOURCES[lock] for line in lines(name)]
    for environment in environments(lock):
        versions = {
            canonicalize_name(pin.name): next(iter(pin.specifier)).version
            for pin in pins
            if applies(pin, environment)
        }
        for requirement in declared:
            name = canonicalize_name(requirement.name)
            if name == 'torch' or not applies(requirement, environment):
                continue
            assert name in versions, f'{requirement}: run tools/lock.sh'
            assert requirement.specifier.contains(versions[name]), (
                f'{requirement}: run tools/lock.sh'
            )


@pytest.mark.parametrize('lock', ['kilted', 'jazzy', 'lint', 'tokenizers'])
def test_what_is_in_two_locks_has_one_version(lock):
    """Because one is installed on top of the other."""
    core, other = (
        [Requirement(HASH.sub('', line)) for line in lines(f'locked/{name}')]
        for name in ('core', lock)
    )
    for environment in environments(lock):
        found = {pin.name: pin.specifier for pin in core if applies(pin, environment)}
        for pin in other:
            if applies(pin, environment):
                assert found.get(pin.name, pin.specifier) == pin.specifier
