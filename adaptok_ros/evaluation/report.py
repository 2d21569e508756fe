"""The results as a page of markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adaptok_ros.evaluation.codec_report import codec_sections, payload_table
from adaptok_ros.evaluation.markdown import MISSING, number, table


def markdown(record: dict[str, Any], plots: Sequence[str]) -> str:
    """The whole page.

    :param record: contents of ``results.json``
    :param plots: file names of the plots beside the page
    """
    overall = record['overall']
    parts = ['# Results', _how(record)]
    parts += [f'![{name}]({name})' for name in plots]
    parts += ['## Overall', _sweep(overall['tau'], overall.get('dense'))]
    if record['fvd']:
        parts.append(_fvd(record['fvd']))
    if record['lit']:
        parts.append(_lit(overall))
    parts += ['## By kind of content', _kinds(record)]
    parts += ['## Noise', _noise(record)]
    if 'previous' in overall:
        parts += ['## Reference: held or previous', _previous(overall['previous'])]
    if 'payloads' in overall:
        parts += ['## Payloads', payload_table(record)]
    if 'codecs' in overall:
        parts += codec_sections(record)
    if 'allocation' in overall:
        parts += ['## The cost of deciding how many tokens', _allocation(overall['allocation'])]
    parts += ['## Every clip', _clips(record)]
    if record['skipped']:
        parts += ['## Skipped', _skipped(record['skipped'])]
    return '\n\n'.join(parts) + '\n'


def _how(record: dict[str, Any]) -> str:
    machine, protocol = record['machine'], record['protocol']
    versions = ', '.join(f'{name} {value}' for name, value in machine['versions'].items())
    split = f', split {protocol["split"]}' if protocol['split'] else ''
    refresh = protocol['refresh_period']
    lines = [
        f'`{record["command"]}`',
        '',
        f'- tokenizer {record["tokenizer"]}, {record["lit"] or "no LIT"}',
        f'- {record["overall"]["clips"]} clips ({protocol["layout"]}{split}), '
        f'{len(record["skipped"])} skipped; {protocol["frames"]}; frame rate '
        f'{protocol["frame_rate"]}; resolution: {protocol["resolution"]}',
        f'- payload {protocol["payload"]}, keyframe: {protocol["keyframes"]}, refresh '
        f'{f"every {refresh} frames" if refresh else "off"}, reference {protocol["reference"]}',
        f'- bytes: {protocol["bytes"]}; the mask bits are charged',
        f'- PSNR: {protocol["psnr"]}',
        f'- SSIM: {protocol["ssim"]}; MS-SSIM: {protocol["ms_ssim"]}',
        f'- {machine["processor"]}, cores: {machine["cores"]}, {machine["system"]}; {versions}',
        *(f'- {line}' for line in record['left_out']),
    ]
    return '\n'.join(lines)


def _sweep(taus: dict[str, Any], dense: dict[str, Any] | None) -> str:
    header = [
        'tau',
        'kept %',
        'kept % after keyframe',
        'kB/frame',
        'bits/pixel',
        'PSNR hold',
        'PSNR LIT',
        'SSIM hold',
        'SSIM LIT',
        'MS-SSIM hold',
        'MS-SSIM LIT',
    ]
    with_lpips = bool(dense and 'lpips' in dense)
    header += ['LPIPS hold', 'LPIPS LIT'] if with_lpips else []
    rows = [
        [
            tau,
            number(row['kept'], 1, 100.0),
            number(row['kept_after_keyframe'], 1, 100.0),
            number(row['bytes_per_frame'], 2, 1e-3),
            number(row['bits_per_pixel'], 3),
            *_qualities(row.get('hold'), row.get('lit'), with_lpips),
        ]
        for tau, row in taus.items()
    ]
    if dense:
        rows.append(
            ['all sent', '100.0', '100.0', MISSING, MISSING, *_qualities(dense, None, with_lpips)]
        )
    return table(header, rows)


def _qualities(
    hold: dict[str, Any] | None, lit: dict[str, Any] | None, with_lpips: bool
) -> list[str]:
    metrics = [('psnr', 2), ('ssim', 4), ('ms_ssim', 4), *([('lpips', 4)] if with_lpips else [])]
    return [
        number((mode or {}).get(metric), digits)
        for metric, digits in metrics
        for mode in (hold, lit)
    ]


def _fvd(values: dict[str, float]) -> str:
    return table(['reconstruction', 'FVD'], [[k, number(v, 1)] for k, v in values.items()])


def _lit(overall: dict[str, Any]) -> str:
    header = [
        'tau',
        'latent MSE hold',
        'latent MSE LIT',
        'LIT / hold',
        'worst clip',
        'clips better with LIT',
    ]
    text = 'At positions that were not sent:\n\n' + table(
        header,
        [
            [
                tau,
                number(row.get('latent_mse_hold'), 5),
                number(row.get('latent_mse_lit'), 5),
                number(row.get('lit_over_hold'), 3),
                number(row.get('lit_over_hold_worst'), 3),
                number(row.get('share_of_clips_better_with_lit'), 0, 100.0) + ' %',
            ]
            for tau, row in overall['tau'].items()
        ],
    )
    moderate = overall.get('moderate')
    if moderate:
        text += (
            f'\n\nLIT / hold over the {moderate["pairs"]} pairs of clip and tau in which 10 to '
            f'50 % were kept: {moderate["lit_over_hold"]:.3f}'
        )
    return text


def _per_tau(record: dict[str, Any]) -> list[str]:
    taus = [f'{tau:g}' for tau in record['protocol']['tau']]
    return [f'{what} at {tau}' for tau in taus for what in ('kept %', 'PSNR hold, LIT')]


def _row_per_tau(entry: dict[str, Any]) -> list[str]:
    cells = [number((entry.get('dense') or {}).get('psnr'), 1)]
    for row in entry['tau'].values():
        cells.append(number(row['kept_after_keyframe'], 1, 100.0))
        pair = ((row.get(mode) or {}).get('psnr') for mode in ('hold', 'lit'))
        cells.append(', '.join(number(value, 1) for value in pair))
    return cells


def _kinds(record: dict[str, Any]) -> str:
    rows = [
        [kind, str(entry['clips']), *_row_per_tau(entry)]
        for kind, entry in record['kinds'].items()
    ]
    return 'Kept after the keyframe.\n\n' + table(
        ['kind', 'clips', 'PSNR all sent', *_per_tau(record)], rows
    )


def _clips(record: dict[str, Any]) -> str:
    rows = [
        [
            clip['name'],
            clip['kind'],
            f'{clip["width"]}x{clip["height"]}x{clip["frames"]}',
            *_row_per_tau(clip),
        ]
        for clip in record['clips']
    ]
    header = ['clip', 'kind', 'size', 'PSNR all sent', *_per_tau(record)]
    return 'Kept after the keyframe.\n\n' + table(header, rows)


def _noise(record: dict[str, Any]) -> str:
    overall = record['overall']
    text = 'Delta that noise alone causes, 99.9th percentile:\n\n' + table(
        ['sigma', 'mean of clips', 'worst clip'],
        [
            [f'{sigma}/255', number(value, 4), number(overall['noise_worst'][sigma], 4)]
            for sigma, value in overall['noise'].items()
        ],
    )
    if 'static' in overall:
        text += (
            '\n\nThe first frame of every clip standing still, with fresh noise of sigma 4/255, '
            'no refresh; positions sent after the keyframe:\n\n'
        ) + table(
            ['tau', 'mean of clips %', 'worst clip %'],
            [
                [tau, number(value, 4, 100.0), number(overall['static_worst'][tau], 4, 100.0)]
                for tau, value in overall['static'].items()
            ],
        )
    return text


def _previous(entry: dict[str, Any]) -> str:
    header = [
        'reference',
        'kept %',
        'kB/frame',
        'PSNR hold',
        'PSNR LIT',
        'positions past the bound in the last frame %',
    ]
    rows = [
        [
            name,
            number(entry[name]['kept'], 1, 100.0),
            number(entry[name]['bytes_per_frame'], 2, 1e-3),
            *(number((entry[name].get(mode) or {}).get('psnr')) for mode in ('hold', 'lit')),
            number(entry[name]['share_over_tau_at_end'], 2, 100.0),
        ]
        for name in ('held', 'previous')
    ]
    return f'At tau {entry["tau"]:g}.\n\n' + table(header, rows)


def _allocation(entry: dict[str, Any]) -> str:
    names = {
        'ours': 'threshold (ours)',
        'elastictok': "ElasticTok's bisection",
        'infotok': "InfoTok's probe",
    }
    rows = [
        [
            title,
            number(entry[name]['passes_per_block'], 1),
            number(entry[name]['seconds_per_frame'], 1, 1e3),
            number(entry[name]['time_over_ours'], 1),
            number(entry[name]['psnr']),
        ]
        for name, title in names.items()
    ]
    text = table(
        ['mechanism', 'passes a block', 'ms a frame', 'time over ours', 'PSNR at equal tokens'],
        rows,
    )
    return (
        f'At tau {entry["tau"]:g}, in blocks of {entry["block_frames"]:g} frames after the '
        'keyframe. The table gives the processor time of one thread until it is known which '
        'tokens to send, with the same tokenizer, in the same run, and with the same number of '
        f'tokens in every block.\n\n{text}\n\n'
        "Each mechanism is reimplemented on this frozen tokenizer; these are not the papers' "
        'models.\n\n'
        '- ElasticTok (arXiv 2410.08368) bisects on the number of tokens that a block gets, until '
        'the decoded pixels meet a target error (that of our stream). Every probe is a full '
        'encoder and decoder pass.\n'
        '- InfoTok (arXiv 2512.16975) does one decoder pass at full rate. Its squared error '
        'stands for the likelihood, and frames get tokens in proportion.\n\n'
        'Both papers train the tokenizer so that the first tokens matter most, or that a frame '
        "packs into fewer. Here a frame's tokens are the positions that moved farthest, and the "
        'rest is held. The PSNR therefore compares how tokens are divided among frames; the time '
        'is the cost of the decision.'
    )


def _skipped(skipped: list[dict[str, str]]) -> str:
    return '\n'.join(f'- {clip["name"]}: {clip["reason"]}' for clip in skipped)
