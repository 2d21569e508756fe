"""What is promised on bad links (docs/trust.md); `bench/run.py faults` is the long form."""
# ruff: noqa: E402 (the folder of the benchmarks must be on the path first)

import dataclasses
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from streams import record

BENCH = Path(__file__).resolve().parent.parent / 'bench'
sys.path.insert(0, str(BENCH))

import bench_faults
from bench_faults import MIXES, ROUND, Campaign, Mix
from relay import QUEUE, Faults, Relay, damage

from adaptok_ros.packet import PacketError, Payload, check, seal

IMAGES = 120
"""Of every mix; those with longer trials are left to the long form."""
SHORT = [mix for mix in MIXES if mix.trial == ROUND]


@pytest.fixture(scope='module')
def campaign():
    campaign = Campaign()
    yield campaign
    campaign.close()


@pytest.mark.parametrize('asks', [True, False], ids=['keyframe', 'refresh'])
@pytest.mark.parametrize('mix', SHORT, ids=lambda mix: mix.name)
def test_ok_is_never_wrong_and_comes_back(campaign, mix, asks):
    found = campaign.run(mix, asks, IMAGES)
    assert found['states'] > 0 and found['positions'] > 0
    assert found['wrong'] == 0
    assert found['over'] == 0 and found['worst'] < 1 + bench_faults.ROUNDING
    assert found['restored_worst'] <= 2
    assert max(found['recoveries']) <= found['stated']


def test_a_wrong_grid_is_found(campaign, monkeypatch):
    """Somebody forges packets, checksum and all: only the checksum of the grid tells."""

    class Forger(Relay):
        def take(self, packet):
            if packet.kept and packet.sequence % 7 == 3:
                data = packet.data.copy()
                data[3 : 4 * packet.channels : 4] ^= 0x80  # the signs of the first token
                packet = seal(dataclasses.replace(packet, data=data))
            return super().take(packet)

    assert bench_faults.PAYLOADS[0] is Payload.FLOAT32
    monkeypatch.setattr(bench_faults, 'Relay', Forger)
    found = campaign.run(Mix('forged'), False, IMAGES)
    assert found['wrong'] > 0 and found['over'] > 0
    assert found['worst'] > 1


def numbers(packets):
    return [packet.sequence for packet in packets]


def batches(faults, packets, seed=0):
    """What arrives with each packet."""
    relay = Relay(faults, seed)
    return [numbers(relay.take(packet)) for packet in packets]


def arrivals(faults, packets):
    return list(itertools.chain.from_iterable(batches(faults, packets)))


@pytest.fixture(scope='module')
def packets():
    return [sent.packet for sent in record(0, 2000)]


def test_a_relay_does_what_it_is_told(packets):
    sent = numbers(packets)
    assert arrivals(Faults(), packets) == sent
    assert 300 < len(arrivals(Faults(drop=0.8), packets)) < 500
    for faults in (Faults(swap=0.2), Faults(delay=0.1)):
        arrived = arrivals(faults, packets)
        assert arrived != sorted(arrived)
        assert len(set(arrived)) == len(arrived) >= len(sent) - faults.longest
    arrived = arrivals(Faults(twice=0.2), packets)
    assert set(arrived) == set(sent) and 2300 < len(arrived) < 2500
    gaps = np.diff(arrivals(Faults(silence=0.01), packets))
    assert 5 < gaps.max() and (gaps > 1).sum() < 30
    counts = list(map(len, batches(Faults(starve=0.02, longest=3 * QUEUE), packets)))
    assert max(counts) == QUEUE and sum(counts) < len(sent)


def test_a_relay_depends_on_its_seed_alone(packets):
    for faults in (MIXES[-1].link, Faults(drop=0.5), Faults(delay=0.5)):
        first = batches(faults, packets[:300], 3)
        assert batches(faults, packets[:300], 3) == first
        assert batches(faults, packets[:300], 4) != first


def test_a_mended_relay_loses_nothing(packets):
    relay = Relay(MIXES[-1].link, 0)
    for packet in packets[:1000]:
        relay.take(packet)
    relay.mend()
    assert [numbers(relay.take(packet)) for packet in packets[1000:]] == [
        [number] for number in numbers(packets[1000:])
    ]


@pytest.mark.parametrize('payload', Payload)
def test_every_damage_is_found(payload):
    random = np.random.default_rng(0)
    for sent in record(1, 300, payload=payload):
        for _ in range(3):
            with pytest.raises(PacketError):
                check(damage(sent.packet, random))
