"""Measure speed: all parts, or those named; tables and one JSON file.

    python bench/run.py [PART...] [--quick] [--data FOLDER] [--output FOLDER]

Everything is measured in one run on one machine, alternatives in turn, and printed as ratios
with medians and spread. Where ROS 2 or the built package is missing (``make bench`` has both),
what goes over DDS is left out, and the tables say so.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import ros
from measuring import FULL, QUICK, Ceilings, Settings, progress
from tables import number, table

from adaptok_ros.evaluation.machine import describe
from adaptok_ros.footage.catalog import Use, find_footage
from adaptok_ros.footage.errors import FootageError

PARTS = {
    'stages': 'Where the time of a frame goes',
    'alternatives': 'Tokens against raw, JPEG and H.264',
    'conversion': 'Image messages to arrays, through cv_bridge and without',
    'selection': 'The selection step, fused against unfused',
    'payloads': 'What each payload costs',
    'gating': 'Gating against dense',
    'lit': 'LIT for what changed against LIT for all',
    'ceiling': 'LIT against hold while the ceiling holds positions back',
    'growth': 'How it grows',
    'healing': 'What heals a loss, and what that costs',
    'half': 'The float16 encoder against float32',
    'token_cache': 'What a policy saves that keeps what it computed for unchanged tokens',
    'thin_link': 'Three cameras over a thin link',
    'dataset': 'Learning from tokens against learning from video',
    'faults': 'What holds on bad links',
    'bags': 'Bags of images to bags of tokens',
}
"""Module ``bench_<name>`` of each, and its title."""
ON_REQUEST = {
    'what_to_send': 'What else might be sent: settling, global motion, other priorities',
    'tau': 'Tau that follows a rate or the noise',
    'ablation': 'What the parts of LIT give',
}
"""Likewise, of what ran for a decision or a page: only where they are named."""
TITLES = {**PARTS, **ON_REQUEST}


def part(name: str) -> ModuleType:
    """Its module, with ``measure(settings)`` and ``tables(result)``."""
    return importlib.import_module(f'bench_{name}')


def ceilings() -> Ceilings:
    """Of this machine, with that of DDS where there is ROS."""
    progress('ceilings of the machine')
    if ros.missing():
        return Ceilings()
    ros.isolate()
    with tempfile.TemporaryDirectory() as folder:
        return Ceilings(ros.loopback_ms(Path(folder)))


def machine_text(machine: dict[str, Any], found: dict[str, Any]) -> str:
    """What ran it, and its ceilings."""
    versions = ', '.join(f'{name} {value}' for name, value in machine['versions'].items())
    copies = found['copy_bytes_per_second']
    rows = [
        [f'copying {int(size) / 1e6:.3g} MB, one thread', f'{rate / 1e9:.1f} GB/s read + written']
        for size, rate in copies.items()
    ]
    rows.append(['float32 matrix product', f'{found["sgemm_flops"] / 1e9:.0f} GFLOP/s'])
    rows.append(['the same, one thread', f'{found["sgemm_one_thread_flops"] / 1e9:.0f} GFLOP/s'])
    if found['dds_loopback_ms'] is not None:
        rows.append(
            ['an empty message to another process', f'{number(found["dds_loopback_ms"])} ms']
        )
    return (
        f'{machine["cores"]} cores of {machine["processor"]}, {machine["system"]}; {versions}.\n\n'
        + table(['ceiling', 'measured'], rows)
    )


def arguments(args: list[str] | None = None) -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or '').splitlines()[0],
        epilog='\n'.join(f'{name:14s}{title}' for name, title in TITLES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'parts', nargs='*', metavar='PART', help=f'default: all but {", ".join(ON_REQUEST)}'
    )
    parser.add_argument('--quick', action='store_true', help='fewer cases and images')
    parser.add_argument('--data', type=Path, help='folder of clips, as adaptok evaluate takes it')
    parser.add_argument(
        '--output', type=Path, default=Path('bench-results'), help='folder for what is written'
    )
    found = parser.parse_args(args)
    for name in found.parts:
        if name not in TITLES:
            parser.error(f'part is {name!r}; allowed: {", ".join(TITLES)}')
    if found.data is not None:
        try:
            find_footage(found.data, Use.EVALUATE)
        except FootageError as error:
            parser.error(str(error))
    return found


def main(args: list[str] | None = None) -> int:
    """Measure, print and write."""
    options = arguments(args)
    chosen = options.parts or list(PARTS)
    modules = {name: part(name) for name in chosen}
    options.output.mkdir(parents=True, exist_ok=True)
    settings = Settings(QUICK if options.quick else FULL, ceilings(), options.data, options.output)
    machine = describe()
    sections, results = [], {}
    started = time.monotonic()
    for name, module in modules.items():
        results[name] = module.measure(settings)
        sections.append(f'## {TITLES[name]}\n\n{module.tables(results[name])}')
        print(f'\n{sections[-1]}', flush=True)
    found = settings.ceilings.record()
    sections.insert(0, f'## Machine\n\n{machine_text(machine, found)}')
    print(f'\n{sections[0]}')
    record = {
        'machine': machine,
        'ceilings': found,
        'quick': options.quick,
        'seconds': time.monotonic() - started,
        'parts': results,
    }
    for name, text in (
        ('bench.json', json.dumps(record, indent=2)),
        ('bench.md', '\n\n'.join(sections)),
    ):
        (options.output / name).write_text(text + '\n')
        progress(f'written: {options.output / name}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
