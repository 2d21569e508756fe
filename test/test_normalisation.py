"""The basis of normalised latents: there and back, and what a distance in it means."""

import numpy as np
import pytest

from adaptok_ros.models.normalisation import Normalisation


@pytest.mark.parametrize('diagonal', [True, False])
def test_normalising_leads_there_and_back(diagonal):
    generator = np.random.default_rng(0)
    mean = tuple(generator.normal(size=3))
    matrix = np.eye(3) * (0.5, 2.0, 8.0)
    if not diagonal:
        matrix = matrix + generator.normal(size=(3, 3)) / 10
    whitening = np.diag(matrix) if diagonal else matrix.reshape(-1)
    normalisation = Normalisation(mean, tuple(whitening))
    assert normalisation.diagonal is diagonal
    raw = generator.normal(size=(4, 5, 3)).astype(np.float32)
    normalised = normalisation.normalise(raw)
    expected = np.einsum('ij,hwj->hwi', matrix, raw - mean)
    np.testing.assert_allclose(normalised, expected, atol=1e-5)
    np.testing.assert_allclose(normalisation.restore(normalised), raw, atol=1e-5)
    assert normalised.dtype == normalisation.restore(normalised).dtype == np.float32


def test_distance_is_what_shows_in_the_picture():
    torch = pytest.importorskip('torch', reason='torch is missing: decoders are differentiated')
    from adaptok_ros.networks.sensitivity import Sensitivity

    torch.manual_seed(0)
    # The third channel hardly shows; the first two show together.
    decoder = torch.nn.Conv2d(3, 12, 3, padding=1)
    with torch.no_grad():
        decoder.weight[:, 2] *= 0.02
        decoder.weight[:, 1] = decoder.weight[:, 0] + 0.1 * decoder.weight[:, 1]
    latents = 3 + 2 * torch.randn(8, 3, 16, 16)
    sensitivity = Sensitivity(decoder)
    for one in latents.split(2):
        sensitivity.add(one)
        sensitivity.probe(one)
    normalisation = sensitivity.normalisation()
    values = normalisation.normalise(latents.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(values.mean((0, 1, 2)), 0, atol=1e-4)
    assert np.square(values).mean() == pytest.approx(1, abs=1e-4)

    def change(direction):
        step = torch.zeros(1, 3, 9, 9)
        step[0, :, 4, 4] = torch.tensor(direction)
        with torch.no_grad():
            shown = decoder(step) - decoder(torch.zeros_like(step))
        return float(shown.norm()), float(np.linalg.norm(normalisation.matrix() @ direction))

    shown, distances = np.array([change(d) for d in ([1, 0, 0], [1, -1, 0], [0, 0, 1.0])]).T
    assert shown.max() > 5 * shown.min()
    np.testing.assert_allclose(distances / shown, distances[0] / shown[0], rtol=0.1)


def test_a_decoder_that_gives_no_numbers_is_refused():
    torch = pytest.importorskip('torch', reason='torch is missing: decoders are differentiated')
    from adaptok_ros.networks.sensitivity import Sensitivity

    sensitivity = Sensitivity(lambda latents: latents * float('nan'))
    latents = torch.randn(1, 3, 4, 4)
    sensitivity.add(latents)
    sensitivity.probe(latents)
    with pytest.raises(ValueError):
        sensitivity.normalisation()


def test_data_that_is_all_alike_is_refused():
    torch = pytest.importorskip('torch', reason='torch is missing: decoders are differentiated')
    from adaptok_ros.networks.sensitivity import Sensitivity

    torch.manual_seed(0)
    sensitivity = Sensitivity(torch.nn.Conv2d(3, 12, 3, padding=1))
    latents = torch.randn(1, 3, 1, 1).expand(1, 3, 8, 8)
    for _ in range(5):
        sensitivity.add(latents)
        sensitivity.probe(latents)
    with pytest.raises(ValueError, match=r'spread of the latents is .*all alike'):
        sensitivity.normalisation()
