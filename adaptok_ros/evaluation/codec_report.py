"""The parts of the page that compare codecs and payloads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from adaptok_ros.evaluation.codecs import CODECS, EQUAL_LATENT_ERROR, EQUAL_PSNR, TARGETS
from adaptok_ros.evaluation.markdown import MISSING, number, table
from adaptok_ros.evaluation.ratios import text

NAMES = {'jpeg': 'JPEG', 'h264': 'H.264', 'h264_444': 'H.264 4:4:4'}

_EQUAL_BYTES = (
    'At tau {tau:g}, keyframe included. The table shows how well a codec serves human viewers; a '
    'policy that receives its images still has to encode them itself. JPEG: OpenCV, every frame '
    'by itself. H.264: libx264, preset medium, tune zerolatency, one key frame. Both: 4:2:0, and '
    "only the codec's own data is counted, without any message around it, whereas tokens are "
    'counted as whole messages.'
)
_EQUAL_PSNR = (
    'Tokens at tau {tau:g}, restored by hold. The codec has the PSNR of the tokens: its bytes lie '
    'between two neighbouring settings, and their logarithm is taken to be linear in dB there. '
    "`<` and `>` are bounds, where a codec's worst setting is still better than the tokens, or "
    'its best still worse. The tokenizer limits the PSNR of tokens even where all are sent (the '
    'column "all sent"), so at that PSNR a codec is asked for little, and needs few bytes.'
)
_EQUAL_LATENTS = (
    'The same, but the codec gives the latents of the tokens: its decoded picture is encoded by '
    'the same frozen tokenizer, and the mean squared error of these latents, over all positions '
    'and frames, equals that of what the receiver of the tokens holds at tau {tau:g}. The truth '
    "is the latents of the camera's RGB picture, so a codec's loss of colour in 4:2:0 counts "
    'against it. Where its best setting is still worse, the ratio is a bound (`<`).'
)
_KINDS = (
    'How many times the bytes of a codec the tokens need: median of the clips of a kind, and how '
    'many clips are within {limits} times H.264. A span (1 to 2) says what is known where some '
    'clips give only bounds.'
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
    """Headings and sections: at equal bytes, PSNR and latent error, and by kind of content."""
    tau = record['clips'][0]['codecs']['tau']
    yield '## Codecs at equal bytes'
    yield _EQUAL_BYTES.format(tau=tau) + '\n\n' + _at_equal_bytes(record)
    if record['overall'].get('dense'):
        yield '## Codecs at equal PSNR'
        yield _EQUAL_PSNR.format(tau=tau) + '\n\n' + _at_equal(record, EQUAL_PSNR)
    yield '## Codecs at equal latent error'
    yield _EQUAL_LATENTS.format(tau=tau) + '\n\n' + _at_equal(record, EQUAL_LATENT_ERROR)
    yield '## Codecs by kind of content'
    limits = ' and '.join(map(str, TARGETS))
    yield _KINDS.format(limits=limits) + '\n\n' + _by_kind(record)


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


def _by_kind(record: dict[str, Any]) -> str:
    groups = {f'all of {word}': entry for word, entry in record['groups'].items()}
    entries = {**record['kinds'], **groups, 'all clips': record['overall']}
    equals = {EQUAL_PSNR: 'equal PSNR', EQUAL_LATENT_ERROR: 'equal latent error'}
    header = ['kind', 'clips']
    for what in equals.values():
        header += [f'{NAMES[name]}, {what}' for name in CODECS]
        header += [f'within {limit}, {what}' for limit in TARGETS]
    rows = []
    for title, entry in entries.items():
        cells = [title, str(entry['clips'])]
        for equal in equals:
            medians = [entry['codecs'][name].get(equal) for name in CODECS]
            cells += [text(ratios['median']) if ratios else MISSING for ratios in medians]
            ratios = entry['codecs']['h264'].get(equal)
            cells += [_count(ratios[f'within_{n}']) if ratios else MISSING for n in TARGETS]
        rows.append(cells)
    return table(header, rows)


def _count(span: list[int]) -> str:
    least, most = span
    return str(least) if least == most else f'{least} to {most}'
