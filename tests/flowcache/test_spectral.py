"""The filter of SeaCache."""

import torch

from flowcache.reuse.spectral import filtered_latent


def wave(frequency, size=16):
    return torch.cos(2 * torch.pi * frequency * torch.arange(size) / size).expand(2, 1, size, size).clone()


def test_without_noise_all_passes():
    latents = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(filtered_latent(latents, 0.0), latents, atol=1e-5, rtol=1e-5)


def test_noise_hides_high_frequencies_more_than_low_ones():
    def passed(frequency, noise):
        return (filtered_latent(wave(frequency), noise).norm() / wave(frequency).norm()).item()

    assert passed(1, 0.9) > 3 * passed(6, 0.9)


def test_gain_by_hand():
    # one axis, two frequencies 0 and 1/2: inverse signal to noise 0 and 1/8 at equal shares
    latents = torch.tensor([1.0, -1.0]).reshape(1, 1, 1, 2)
    gain = torch.tensor([2.0, 2 / (1 + 1 / 8)])
    expected = latents * gain[1] / gain.mean()
    torch.testing.assert_close(filtered_latent(latents, 0.5), expected)
