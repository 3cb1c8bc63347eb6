"""Exponential moving average of a model's parameters, under the lineage's buffer names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from ldm.errors import UserError

RESERVED = ("decay", "num_updates")

_State = tuple[int, int]  # where a tensor's numbers are, and how often they were changed in place


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
        self._copied: dict[str, tuple[_State, _State]] = {}  # frozen parameters and shadows at their last copy
        self._count: tuple[Tensor | None, int, int, float] = (None, 0, 0, decay)
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

    def _pairs(self, parameters: Mapping[str, nn.Parameter]) -> list[tuple[nn.Parameter, Tensor]]:
        """(parameter, shadow) for every shadow. Raises UserError when the model is not the one that was averaged."""
        gone = [name for name in self.m_name2s_name if name not in parameters]
        if gone:
            raise UserError(
                f"the EMA holds {len(gone)} parameters that the model lacks, first {gone[0]!r}; "
                "give the model that the EMA was made for"
            )
        shadows = self._buffers
        return [(parameters[name], cast(Tensor, shadows[shadow])) for name, shadow in self.m_name2s_name.items()]

    @torch.no_grad()
    def forward(self, model: nn.Module) -> None:
        """Count one update and move every shadow towards its parameter.

        A frozen parameter has not changed during training, so its shadow becomes the parameter itself: the averaged
        network then has the same frozen part as the network that was trained. It is copied when it has changed since
        the last update. Raises UserError when a trained parameter has no shadow (it was frozen when the EMA was made;
        call :meth:`reset`).
        """
        parameters = dict(model.named_parameters())
        for name, parameter in parameters.items():
            if parameter.requires_grad and name not in self.m_name2s_name:
                raise UserError(
                    f"parameter {name!r} is trained but has no EMA shadow; choose what is trained before the EMA is "
                    "made, or call its reset(model)"
                )
        trained: list[tuple[Tensor, Tensor]] = []
        for name, (parameter, shadow) in zip(self.m_name2s_name, self._pairs(parameters), strict=True):
            if parameter.requires_grad:
                trained.append((shadow, parameter.to(shadow.dtype)))
            elif (_state(parameter), _state(shadow)) != self._copied.get(name):
                shadow.copy_(parameter)
                self._copied[name] = _state(parameter), _state(shadow)
        weight = self._next_weight()
        if trained:
            shadows, values = zip(*trained, strict=True)
            torch._foreach_lerp_(shadows, values, weight)

    def _next_weight(self) -> float:
        """Count an update; the weight of the parameters in it, in [0, 1].

        The count is kept as a number too, since reading a tensor makes the host wait for a GPU.
        """
        buffer, version, count, decay = self._count
        if buffer is not self.num_updates or version != buffer._version:  # loaded, moved or reset
            count, decay = int(self.num_updates), float(self.decay)
        counting = count >= 0
        if counting:
            count += 1
            self.num_updates.add_(1)
        self._count = self.num_updates, self.num_updates._version, count, decay
        if self.power is not None:
            return 1 - (1 - 1 / max(count, 1)) ** (self.power + 1)
        return 1 - (min(decay, (1 + count) / (10 + count)) if counting else decay)

    @torch.no_grad()
    def reset(self, model: nn.Module, restart_count: bool = True) -> None:
        """Make every shadow equal to its parameter and add shadows for newly trained parameters.

        Call it after loading weights without an EMA. ``restart_count`` also starts the warm-up of
        the decay again.
        """
        self._add_shadows(model)
        for parameter, shadow in self._pairs(dict(model.named_parameters())):
            shadow.copy_(parameter)
        if restart_count:
            self.num_updates.clamp_(max=0)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the model's parameters with their shadows; parameters without one stay as they are."""
        for parameter, shadow in self._pairs(dict(model.named_parameters())):
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
        pairs = self._pairs(dict(model.named_parameters()))
        own = [parameter.detach().clone() for parameter, _ in pairs]
        self.copy_to(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for (parameter, _), value in zip(pairs, own, strict=True):
                    parameter.copy_(value)


def _state(tensor: Tensor) -> _State:
    return tensor.data_ptr(), tensor._version
