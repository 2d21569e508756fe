"""The parts of the page that compare codecs and payloads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from adaptok_ros.evaluation.codecs import CODECS, EQUAL_LATENT_ERROR, EQUAL_PSNR, TARGETS
from adaptok_ros.evaluation.markdown import number, table
from adaptok_ros.evaluation.ratios import text

NAMES = {'jpeg': 'JPEG', 'h264': 'H.264', 'h264_444': 'H.264 4:4:4'}

_EQUAL_BYTES = (
    'At tau {tau:g}, keyframe included. A policy that receives the images of a codec still has to '
    'encode them itself: the latent MSE is that of their latents, encoded by the same frozen '
    "tokenizer, against those of the camera's picture. JPEG: OpenCV, every frame by itself, "
    '4:2:0. H.264: libx264, preset medium, tune zerolatency, one key frame; 4:2:0 as cameras and '
    'robots have it, and 4:4:4, without subsampled colour, which few devices decode. Only '
    "a codec's own data is counted, without any message around it, whereas tokens are counted as "
    'whole messages.'
)
_EQUAL_PSNR = (
    'Tokens at tau {tau:g}, restored by hold. Each codec has the PSNR of the tokens: its bytes '
    'lie between those of two neighbouring settings, and their logarithm is taken to be linear in '
    "dB there. `<` and `>` are bounds, where a codec's worst setting is still better than the "
    'tokens, or its best still worse. The tokenizer limits the PSNR of tokens even where all are '
    'sent (the column PSNR all sent), so a codec is asked for little here, and needs few bytes.'
)
_EQUAL_LATENTS = (
    'As above, but each codec gives the latents as well as the tokens do: its decoded picture is '
    'encoded by the same frozen tokenizer, and the mean squared error of these latents, over all '
    'positions and frames, equals that of what the receiver of the tokens holds at tau {tau:g}. '
    "The truth is the latents of the camera's RGB picture, so the colour that 4:2:0 loses counts "
    'against a codec; 4:4:4 loses only what 8 bits of YUV cannot hold.'
)
_KINDS = (
    'How many times the bytes of a codec the tokens need: median of the clips of a kind; and how '
    'many of these clips are within {limits} times H.264. A span (1 to 2) says what is known '
    'where some clips give only bounds.'
)


def payload_table(record: dict[str, Any]) -> str:
    """Bytes and quality of the payloads, mean over all clips, restored by hold."""
    overall = record['overall']
    own = {
        tau: {**row, 'psnr': (row.get('hold') or {}).get('psnr')}
        for tau, row in overall['tau'].items()
    }
    payloads = {record['protocol']['payload']: own, **overall['payloads']}
    header = ['tau']
    for name in payloads:
        header += [f'{name} kB/frame', f'{name} PSNR', f'{name} latent MSE']
    rows = [
        [
            tau,
            *(
                number(payload[tau].get(figure), digits, scale)
                for payload in payloads.values()
                for figure, digits, scale in (
                    ('bytes_per_frame', 2, 1e-3),
                    ('psnr', 2, 1.0),
                    ('latent_mse_everywhere_hold', 5, 1.0),
                )
            ),
        ]
        for tau in own
    ]
    return (
        'Restored by hold, keyframe included; the error of latents is over all positions and '
        'frames.\n\n'
    ) + table(header, rows)


def codec_sections(record: dict[str, Any]) -> Iterator[str]:
    """Headings and sections: at equal bytes, at equal PSNR and at equal latent error."""
    tau = record['clips'][0]['codecs']['tau']
    yield '## Codecs at equal bytes'
    yield _EQUAL_BYTES.format(tau=tau)
    yield _at_equal_bytes(record)
    kinds = _KINDS.format(limits=' and '.join(map(str, TARGETS)))
    if record['overall'].get('dense'):
        yield '## Codecs at equal PSNR'
        yield _EQUAL_PSNR.format(tau=tau)
        yield _at_equal(record, EQUAL_PSNR)
        yield kinds
        yield _by_kind(record, EQUAL_PSNR)
    yield '## Codecs at equal latent error'
    yield _EQUAL_LATENTS.format(tau=tau)
    yield _at_equal(record, EQUAL_LATENT_ERROR)
    yield kinds
    yield _by_kind(record, EQUAL_LATENT_ERROR)


def _at_equal_bytes(record: dict[str, Any]) -> str:
    rows = []
    for clip in record['clips']:
        codecs = clip['codecs']
        row = clip['tau'][f'{codecs["tau"]:g}']
        pair = ((row.get(mode) or {}).get('psnr') for mode in ('hold', 'lit'))
        cells = [clip['name'], number(codecs['bytes_per_frame'], 2, 1e-3)]
        cells += [', '.join(map(number, pair)), number(codecs['latent_mse'], 5)]
        for name in CODECS:
            point = codecs[name]['equal_bytes']
            cells.append(number(point['bytes_per_frame'], 2, 1e-3))
            cells += [number(point['psnr']), number(point['latent_mse'], 5)]
        rows.append(cells)
    header = ['clip', 'tokens kB/frame', 'tokens PSNR hold, LIT', 'tokens latent MSE']
    for name in CODECS:
        header += [f'{NAMES[name]} {what}' for what in ('kB/frame', 'PSNR', 'latent MSE')]
    return table(header, rows)


def _at_equal(record: dict[str, Any], equal: str) -> str:
    pixels = equal == EQUAL_PSNR
    rows = []
    for clip in record['clips']:
        codecs = clip['codecs']
        points = [codecs[name][equal] for name in CODECS]
        rows.append(
            [
                clip['name'],
                clip['kind'],
                *([number(clip['dense']['psnr'], 1), number(codecs['psnr'], 1)] if pixels else []),
                *([] if pixels else [number(codecs['latent_mse'], 5)]),
                number(codecs['bytes_per_frame'], 2, 1e-3),
                *(
                    f'{point["bound"]} {number(point["bytes_per_frame"], 2, 1e-3)}'.strip()
                    for point in points
                ),
                *(text(point['tokens_over_codec']) for point in points),
            ]
        )
    header = ['clip', 'kind', *(['PSNR all sent', 'PSNR'] if pixels else ['latent MSE'])]
    header += ['tokens kB/frame', *(f'{NAMES[name]} kB/frame' for name in CODECS)]
    return table([*header, *(f'tokens / {NAMES[name]}' for name in CODECS)], rows)


def _by_kind(record: dict[str, Any], equal: str) -> str:
    groups = {f'all of {word}': entry for word, entry in record['groups'].items()}
    entries = {**record['kinds'], **groups, 'all clips': record['overall']}
    videos = [name for name in CODECS if name != 'jpeg']
    header = ['kind', 'clips', *(f'tokens / {NAMES[name]}' for name in CODECS)]
    header += [f'within {limit} x {NAMES[name]}' for name in videos for limit in TARGETS]
    rows = []
    for title, entry in entries.items():
        ratios = {name: entry['codecs'][name][equal] for name in CODECS}
        cells = [title, str(entry['clips']), *(text(r['median']) for r in ratios.values())]
        cells += [_count(ratios[name][f'within_{n}']) for name in videos for n in TARGETS]
        rows.append(cells)
    return table(header, rows)


def _count(span: list[int]) -> str:
    least, most = span
    return str(least) if least == most else f'{least} to {most}'
