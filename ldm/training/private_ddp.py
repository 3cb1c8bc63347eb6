"""DDP strategy of a private run over several devices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytorch_lightning.strategies import DDPStrategy

from ldm.errors import UserError
from ldm.privacy.distributed import broadcast_state
from ldm.training.devices import device_count


class PrivateDDP(DDPStrategy):
    """The processes of Lightning's ``ddp`` without torch's wrapper around the model.

    The wrapper averages gradients during backward passes and broadcasts buffers, including the running averages of the
    weights, before every forward pass. A private step does not need this, because it sums the noised gradients over the
    processes itself, once per step. The only remaining task is to give all processes the same initial weights.
    """

    def configure_ddp(self) -> None:
        """Give all processes the weights of the first one; each process already has its own random state."""
        assert self.model is not None
        broadcast_state(self.model)


def process_count(settings: Mapping[str, Any]) -> int:
    """How many processes the resolved Trainer settings start, on all nodes together."""
    return device_count(settings) * int(settings.get("num_nodes") or 1)


def private_strategy(settings: Mapping[str, Any]) -> DDPStrategy | str:
    """The strategy of a private run under these Trainer settings.

    Raises UserError for strategies that shard the model or share one process's random state.
    """
    strategy = settings.get("strategy") or "auto"
    several = process_count(settings) > 1
    # These suffixes configure the wrapper, which is not used here.
    named = str(strategy).replace("_find_unused_parameters_true", "").replace("_find_unused_parameters_false", "")
    if named not in ("auto", "ddp"):
        raise UserError(f"strategy {strategy}: private training runs on one device or with --strategy ddp")
    return PrivateDDP() if several or named == "ddp" else "auto"
