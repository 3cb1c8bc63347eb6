"""EMA weights in checkpoints; their names are ``model_ema.`` plus the parameter name without dots."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ldm.errors import UserError

PREFIX = "model_ema."
COUNTERS = ("decay", "num_updates")


def split_ema(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a state dict into the raw weights and the EMA weights; the latter lose their ``model_ema.`` prefix."""
    weights = {key: value for key, value in state_dict.items() if not key.startswith(PREFIX)}
    ema = {key.removeprefix(PREFIX): value for key, value in state_dict.items() if key.startswith(PREFIX)}
    return weights, ema


def ema_to_parameters(module: nn.Module, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The EMA weights of a state dict under the parameter names of ``module``, the averaged network.

    Parameters that were frozen when averaging began have no EMA and are absent from the result; without any
    ``model_ema.`` keys the result is empty.

    Raises:
        UserError: when an EMA tensor belongs to no parameter or has another shape, or when two parameters
            share one name without dots.
    """
    parameters = dict(module.named_parameters())
    by_dotless: dict[str, str] = {}
    for name in parameters:
        other = by_dotless.setdefault(name.replace(".", ""), name)
        if other != name:
            raise UserError(f"the parameters '{other}' and '{name}' have one EMA name; rename one of them")
    _, ema = split_ema(state_dict)
    averages = {key: value for key, value in ema.items() if key not in COUNTERS}
    stray = [key for key in averages if key not in by_dotless]
    if stray:
        raise UserError(
            f"{len(stray)} of {len(averages)} averaged weights belong to no parameter of the network, the first is "
            f"'{PREFIX}{stray[0]}'; the checkpoint is of another network: give the YAML file that it was trained with"
        )
    named = {by_dotless[key]: value for key, value in averages.items()}
    for name, value in named.items():
        if value.shape != parameters[name].shape:
            raise UserError(
                f"the averaged weight of '{name}' is {tuple(value.shape)} in the file, "
                f"{tuple(parameters[name].shape)} in the model"
            )
    return named
