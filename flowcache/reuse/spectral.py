"""What of a noisy latent is already signal."""

from __future__ import annotations

import torch
from torch import Tensor

#: Exponent of the power law that video latents' spectra are taken to follow.
POWER = 3.0

#: What models call this as an indicator of reuse.
FILTERED_LATENT = "filtered_latent"


def filtered_latent(latents: Tensor, noise_level: float) -> Tensor:
    """Pass the frequencies that stand out of the noise, as SeaCache does (arXiv 2602.18993, section 3).

    Along each of time, height and width, the Wiener filter of a signal whose power falls with the frequency's
    third power, ``gain = a S / (a^2 S + b^2)`` with ``a = 1 - noise_level`` and ``b = noise_level``; the
    product of the three is scaled to a mean of 1, so that distances compare across noise levels.

    Args:
        latents: ``[channels, frames, height, width]``.
        noise_level: share of noise, 0 to 1.
    """
    noise = min(max(noise_level, 1e-6), 1 - 1e-6)
    gain = torch.ones((), device=latents.device)
    for axis, size in enumerate(latents.shape[1:]):
        frequencies = torch.fft.fftfreq(size, device=latents.device).abs()
        # the signal's power over the noise's, inverted, for there is no bound to the power at frequency 0
        inverse = (noise / (1 - noise)) ** 2 * frequencies**POWER
        gain = gain * (1 / ((1 - noise) * (1 + inverse))).reshape([-1 if i == axis else 1 for i in range(3)])
    spectrum = torch.fft.fftn(latents.float(), dim=(1, 2, 3)) * (gain / gain.mean())
    return torch.fft.ifftn(spectrum, dim=(1, 2, 3)).real
