"""Exponential moving average of a model's parameters, under the lineage's buffer names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ldm.errors import UserError

RESERVED = ("decay", "num_updates")


class LitEma(nn.Module):
    """Keeps one shadow buffer for each parameter that requires a gradient when this object is made.

    A buffer is called like its parameter with the dots removed (``net.0.weight`` -> ``net0weight``), next to the
    buffers ``decay`` (float32) and ``num_updates`` (int32). Update n uses the decay min(decay, (1 + n) / (10 + n));
    with ``use_num_upates=False`` (lineage spelling) ``num_updates`` stays -1 and the decay is constant. ``decay`` is
    within [0, 1]. With ``power`` g update n uses (1 - 1/n)^(g + 1) in place of these: the weights of step t then have a
    share in the average proportional to t^g, for any number of steps (Karras et al. 2024, arXiv 2312.02696, section
    3.1). Raises UserError for a decay or power out of range and for names that collide without their dots.
    """

    def __init__(
        self, model: nn.Module, decay: float = 0.9999, use_num_upates: bool = True, power: float | None = None
    ) -> None:
        super().__init__()
        if not 0.0 <= decay <= 1.0:
            raise UserError(f"the EMA decay is {decay}; it must be within [0, 1], 0.9999 is usual")
        if power is not None and not power >= 0:
            raise UserError(f"the EMA power is {power}; it must be at least 0, about 6 is usual")
        self.power = power
        self.decay: Tensor
        self.num_updates: Tensor
        self.register_buffer("decay", torch.tensor(decay, dtype=torch.float32))
        self.register_buffer("num_updates", torch.tensor(0 if use_num_upates else -1, dtype=torch.int32))
        self.m_name2s_name: dict[str, str] = {}
        self._collected: list[Tensor] = []
        self._add_shadows(model)

    def _add_shadows(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad or name in self.m_name2s_name:
                continue
            shadow = name.replace(".", "")
            if shadow in RESERVED or shadow in self.m_name2s_name.values():
                raise UserError(f"parameter {name!r} has the EMA name {shadow!r}, which is taken; rename the parameter")
            self.m_name2s_name[name] = shadow
            self.register_buffer(shadow, parameter.detach().clone())

    def _pairs(self, model: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
        """(parameter, shadow) for every shadow. Raises UserError when the model is not the one that was averaged."""
        parameters = dict(model.named_parameters())
        gone = [name for name in self.m_name2s_name if name not in parameters]
        if gone:
            raise UserError(
                f"the EMA holds {len(gone)} parameters that the model lacks, first {gone[0]!r}; "
                "give the model that the EMA was made for"
            )
        return [(parameters[name], self.get_buffer(shadow)) for name, shadow in self.m_name2s_name.items()]

    @torch.no_grad()
    def forward(self, model: nn.Module) -> None:
        """Count one update and move every shadow towards its parameter.

        A frozen parameter has not changed during training, so its shadow becomes the parameter itself: the averaged
        network then has the same frozen part as the network that was trained. Raises UserError when a trained
        parameter has no shadow (it was frozen when the EMA was made; call :meth:`reset`).
        """
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and name not in self.m_name2s_name:
                raise UserError(
                    f"parameter {name!r} is trained but has no EMA shadow; choose what is trained before the EMA is "
                    "made, or call its reset(model)"
                )
        counting = self.num_updates >= 0
        self.num_updates.add_(counting)
        step = self._step(counting)
        for parameter, shadow in self._pairs(model):
            if parameter.requires_grad:
                shadow.lerp_(parameter.to(shadow.dtype), step.to(shadow.dtype))
            else:
                shadow.copy_(parameter)

    def _step(self, counting: Tensor) -> Tensor:
        """Weight of the parameters in this update of the shadows, in [0, 1]."""
        if self.power is not None:
            return 1 - (1 - 1 / self.num_updates.clamp(min=1)) ** (self.power + 1)
        warm_up = (1 + self.num_updates) / (10 + self.num_updates)
        return 1 - torch.where(counting, torch.minimum(self.decay, warm_up), self.decay)

    @torch.no_grad()
    def reset(self, model: nn.Module, restart_count: bool = True) -> None:
        """Make every shadow equal to its parameter and add shadows for newly trained parameters.

        Call it after loading weights without an EMA. ``restart_count`` also starts the warm-up of
        the decay again.
        """
        self._add_shadows(model)
        for parameter, shadow in self._pairs(model):
            shadow.copy_(parameter)
        if restart_count:
            self.num_updates.clamp_(max=0)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the model's parameters with their shadows; parameters without one stay as they are."""
        for parameter, shadow in self._pairs(model):
            parameter.copy_(shadow)

    def store(self, parameters: Iterable[nn.Parameter]) -> None:
        """Remember the values of ``parameters`` for :meth:`restore`."""
        self._collected = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def restore(self, parameters: Iterable[nn.Parameter]) -> None:
        """Write back the values of the last :meth:`store`, given the same parameters in the same order."""
        for value, parameter in zip(self._collected, parameters, strict=True):
            parameter.copy_(value)
        self._collected = []

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """Context manager under which the model has the averaged weights; restores its own exactly."""
        pairs = self._pairs(model)
        own = [parameter.detach().clone() for parameter, _ in pairs]
        self.copy_to(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for (parameter, _), value in zip(pairs, own, strict=True):
                    parameter.copy_(value)
