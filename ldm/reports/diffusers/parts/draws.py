"""The class statistics that a private run has released: a mixture of Gaussians a class, in public directions."""

import math

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config


class ReleasedStatistics(ModelMixin, ConfigMixin):
    """Draws scaled latents of ``latent_shape`` (C, h, w).

    ``weights`` (classes, cells); ``means`` (classes, cells, k); ``factors`` (classes, cells or 1, k, k), F with
    covariance F Fᵀ; latents are ``centre`` (d,) + coordinates @ ``lift`` (k, d).
    """

    @register_to_config
    def __init__(self, classes=1, cells=1, covariances=1, directions=1, latent_shape=(1, 1, 1)):
        super().__init__()
        numbers = math.prod(latent_shape)
        shapes = {
            "weights": (classes, cells),
            "means": (classes, cells, directions),
            "factors": (classes, covariances, directions, directions),
            "centre": (numbers,),
            "lift": (directions, numbers),
        }
        for name, shape in shapes.items():
            self.register_parameter(name, torch.nn.Parameter(torch.zeros(shape), requires_grad=False))

    @torch.no_grad()
    def draw(self, labels, generator=None):
        """Latents (N, C, h, w) float32 for a list of labels, in double precision where the generator is."""
        device = "cpu" if generator is None else generator.device
        names = ("weights", "means", "factors", "centre", "lift")
        weights, means, factors, centre, lift = (getattr(self, name).to(device, torch.float64) for name in names)
        labels = torch.tensor(labels, device=device)
        cells = torch.multinomial(weights[labels], 1, generator=generator)[:, 0]
        noise = torch.randn(len(labels), means.shape[2], generator=generator, dtype=torch.float64, device=device)
        groups = labels * factors.shape[1] + (cells if factors.shape[1] > 1 else 0)
        rows = means[labels, cells]
        for group in groups.unique().tolist():
            members = groups == group
            rows[members] += noise[members] @ factors.flatten(0, 1)[group].T
        return (centre + rows @ lift).float().view(len(labels), *self.config.latent_shape)
