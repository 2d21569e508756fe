"""Every parameter of every node; ``python -m`` of this file prints the README's tables."""

from __future__ import annotations

from adaptok_ros.arrays import LARGEST_SIDE
from adaptok_ros.engines.interface import BACKENDS
from adaptok_ros.models.folders import DEFAULT_TOKENIZER
from adaptok_ros.nodes.camera_parameters import CAMERA_NODE
from adaptok_ros.nodes.parameter import NodeParameter, readme_table
from adaptok_ros.packet import TAU_LIMIT, Payload
from adaptok_ros.receiving.latents import MODES
from adaptok_ros.receiving.restoration import RestorationScope
from adaptok_ros.sending.selection import (
    DEFAULT_REFRESH,
    DEFAULT_TAU,
    LONGEST_REFRESH,
    PERIOD_LIMIT,
    SMALLEST_CODED_TAU,
    TARGET_RATES,
    TOKEN_LIMIT,
    Reference,
    SelectionConfig,
    TauMode,
)
from adaptok_ros.sending.value_range import RANGES
from adaptok_ros.tokenizers.gating.changes import DEFAULT_NOISE, NOISE_LIMIT, Gating

TRANSPORTS = ('raw', 'compressed', 'compressedDepth', 'ffmpeg', 'foxglove')
VALUE_LIMIT = 65535.0
"""Of the values of images with more than 8 bits."""
LONGEST_INTERVAL = 3600.0
"""Seconds."""

AUTOSTART = NodeParameter(
    'autostart', True, 'configure and activate at start; false leaves that to a lifecycle manager'
)

TOKENIZER_NODE = (
    NodeParameter(
        'tau',
        DEFAULT_TAU,
        'threshold on the mean absolute change of a normalised latent; lower '
        'keeps more, 0 sends everything; with payload coded 0 or at least 0.005',
        0.0,
        TAU_LIMIT,
        runtime=True,
    ),
    NodeParameter(
        'tau_mode',
        SelectionConfig.tau_mode.value,
        'what sets tau: the parameter tau (fixed), the bytes sent (target_rate), or the noise '
        'where nothing moves (noise); otherwise than fixed, tau is where it begins',
        choices=tuple(mode.value for mode in TauMode),
        runtime=True,
    ),
    NodeParameter(
        'target_rate',
        SelectionConfig.target_rate,
        'kB (1000 bytes) a second of tokens and masks, for tau_mode target_rate',
        *TARGET_RATES,
        runtime=True,
    ),
    NodeParameter(
        'tau_min',
        SelectionConfig.tau_min,
        'smallest tau that tau_mode target_rate or noise takes',
        SMALLEST_CODED_TAU,
        TAU_LIMIT,
        runtime=True,
    ),
    NodeParameter(
        'tau_max',
        SelectionConfig.tau_max,
        'largest, likewise',
        SMALLEST_CODED_TAU,
        TAU_LIMIT,
        runtime=True,
    ),
    NodeParameter(
        'max_tokens',
        0,
        'ceiling on tokens a frame, largest and longest waiting change first; 0 = none',
        0,
        TOKEN_LIMIT,
        runtime=True,
    ),
    NodeParameter(
        'keyframe_interval',
        0,
        'frames from one keyframe to the next; 0 = only the first and those asked for',
        0,
        PERIOD_LIMIT,
        runtime=True,
    ),
    NodeParameter(
        'keyframe_min_interval',
        1.0,
        'least seconds between two keyframes that were asked for; one answers all '
        'requests in between',
        0.0,
        LONGEST_INTERVAL,
    ),
    NodeParameter(
        'refresh_seconds',
        DEFAULT_REFRESH,
        'seconds, by the stamps of the images, within which every position is renewed; 0 = never',
        0.0,
        LONGEST_REFRESH,
        runtime=True,
    ),
    NodeParameter(
        'payload',
        'coded',
        'encoding of token values; coded takes the fewest bytes and moves no value by more than '
        'a quarter of tau',
        choices=tuple(payload.name.lower() for payload in Payload),
    ),
    NodeParameter(
        'reference',
        'held',
        'what a frame is compared with: what the receiver holds (bounded '
        'error), or the previous frame (for comparison only)',
        choices=tuple(reference.value for reference in Reference),
    ),
    NodeParameter(
        'tokenizer', DEFAULT_TOKENIZER, 'name of a shipped tokenizer, or the path of its folder'
    ),
    NodeParameter('backend', 'auto', 'engine that runs the encoder', choices=BACKENDS),
    NodeParameter(
        'gating',
        'off',
        'encode only what changed since it was last encoded: any difference '
        "(exact), or one above the camera's noise (noise); on the CPU",
        choices=tuple(gating.value for gating in Gating),
    ),
    NodeParameter(
        'gating_noise',
        DEFAULT_NOISE,
        "standard deviation of the camera's noise in steps of 8 "
        'bits, for gating noise; `adaptok tune` measures it',
        0.0,
        NOISE_LIMIT,
    ),
    NodeParameter(
        'input_height', 0, 'resize images to this height first; 0 = as they come', 0, LARGEST_SIDE
    ),
    NodeParameter(
        'input_width', 0, 'resize images to this width first; 0 = as they come', 0, LARGEST_SIDE
    ),
    NodeParameter(
        'transport',
        'raw',
        'subscribe to image (raw), or to the topic of that name below it, such as '
        'image/compressed',
        choices=TRANSPORTS,
    ),
    NodeParameter(
        'value_range',
        'fixed',
        'what becomes black and white in images with more than 8 bits: range_min and range_max '
        '(fixed), or what the first second shows, from then on (auto)',
        choices=RANGES,
    ),
    NodeParameter(
        'range_min',
        0.0,
        'value that becomes black in images with more than 8 bits, in their unit: counts, or '
        'millimetres or metres of depth',
        -VALUE_LIMIT,
        VALUE_LIMIT,
    ),
    NodeParameter(
        'range_max',
        0.0,
        'value that becomes white; both 0 = all of 16 bits',
        -VALUE_LIMIT,
        VALUE_LIMIT,
    ),
    AUTOSTART,
)

LIT_NODE = (
    NodeParameter(
        'mode',
        'lit',
        'restore unsent positions with LIT, or hold their last values',
        choices=MODES,
    ),
    NodeParameter(
        'tokenizer',
        DEFAULT_TOKENIZER,
        'name or folder of the tokenizer whose tokens to expect; '
        'its folder also holds the LIT and the decoder',
    ),
    NodeParameter('backend', 'auto', 'engine that runs LIT and the decoder', choices=BACKENDS),
    NodeParameter(
        'lit_scope',
        'all',
        'what LIT restores in a frame: all of the grid, or what lies around '
        'changes (changed), on the CPU',
        choices=tuple(kind.value for kind in RestorationScope),
    ),
    NodeParameter(
        'keyframe_service',
        'tokenizer/request_keyframe',
        'service (std_srvs/Trigger) to ask for '
        'a keyframe after a loss or a late start; empty = never ask',
    ),
    NodeParameter(
        'max_positions',
        32768,
        'largest grid to accept, rows times columns: 1920x1080 in strides of 8 has 32400',
        1,
        TOKEN_LIMIT,
    ),
    NodeParameter(
        'timeout',
        1.0,
        'seconds without a packet after which the last latents are published '
        'once more, STALE; 0 = never',
        0.0,
        LONGEST_INTERVAL,
    ),
    NodeParameter(
        'payload',
        'float32',
        'encoding of the published latents; float16 halves the bytes and rounds the values',
        choices=('float32', 'float16'),
    ),
    AUTOSTART,
)

NODES = {'tokenizer_node': TOKENIZER_NODE, 'lit_node': LIT_NODE, 'camera_node': CAMERA_NODE}


def readme_tables() -> str:
    """The tables of all nodes, as they stand in the README."""
    return '\n\n'.join(
        f'**{executable}** (node name `{executable.removesuffix("_node")}`)\n\n'
        f'{readme_table(table)}'
        for executable, table in NODES.items()
    )


if __name__ == '__main__':
    print(readme_tables())
