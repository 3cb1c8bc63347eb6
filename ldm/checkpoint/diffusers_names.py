"""Names and shapes of tensors in the diffusers library: autoencoders both ways, the denoising network one way.

The library keeps the arithmetic of the latent-diffusion lineage under other names. Attention of its autoencoders and of
its network without context is linear layers in place of 1x1 convolutions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

State = dict[str, Tensor]

_RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "label_emb": "class_embedding",
}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
#: Names of the same layers in files that older versions of the library wrote.
_OLDER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def network_places(levels: int, blocks: int, attended: Sequence[bool], resamples: str) -> dict[str, str]:
    """Prefixes of the network's layers here, and in the library.

    ``levels`` and ``blocks`` are the numbers of resolutions and of residual blocks in each; ``attended`` says for each
    level whether it has attention. ``resamples``: "conv" or "block", the kind of down- and up-sampling layers.
    """
    places, index = {"middle_block.0": "mid_block.resnets.0", "middle_block.2": "mid_block.resnets.1"}, 1
    places["middle_block.1"] = "mid_block.attentions.0"
    for level in range(levels):
        for block in range(blocks):
            places[f"input_blocks.{index}.0"] = f"down_blocks.{level}.resnets.{block}"
            if attended[level]:
                places[f"input_blocks.{index}.1"] = f"down_blocks.{level}.attentions.{block}"
            index += 1
        if level < levels - 1:
            own = f"input_blocks.{index}.0" + (".op" if resamples == "conv" else "")
            places[own] = f"down_blocks.{level}.downsamplers.0" + (".conv" if resamples == "conv" else "")
            index += 1
    for step in range(levels):
        level = levels - 1 - step
        for block in range(blocks + 1):
            index = step * (blocks + 1) + block
            places[f"output_blocks.{index}.0"] = f"up_blocks.{step}.resnets.{block}"
            if attended[level]:
                places[f"output_blocks.{index}.1"] = f"up_blocks.{step}.attentions.{block}"
        if level:
            own = f"output_blocks.{index}.{2 if attended[level] else 1}" + (".conv" if resamples == "conv" else "")
            places[own] = f"up_blocks.{step}.upsamplers.0" + (".conv" if resamples == "conv" else "")
    return places


def network_to_diffusers(state: Mapping[str, Tensor], places: Mapping[str, str], heads: Callable[[int], int]) -> State:
    """The tensors of a `UNetModel` under the library's names; ``places`` are those of `network_places`.

    ``heads`` gives the number of heads of an attention block of a width, whose rows of ``qkv`` are grouped by head; a
    negative number stands for rows that are grouped by query, key and value first.
    """
    renamed: State = {}
    for key, value in state.items():
        whole, _, kind = key.rpartition(".")
        if whole in _ENDS:
            renamed[f"{_ENDS[whole]}.{kind}"] = value
            continue
        prefix = max((own for own in places if f"{key}.".startswith(f"{own}.")), key=len)
        inner, place = whole.removeprefix(prefix).removeprefix("."), places[prefix]
        if inner == "qkv":
            parts = _split_qkv(value, heads(len(value) // 3))
            renamed |= {f"{place}.to_{name}.{kind}": part for name, part in zip("qkv", parts, strict=True)}
        elif inner in ("norm", "proj_out") and f"{prefix}.qkv.weight" in state:
            renamed[f"{place}.{_ATTENTION[inner]}.{kind}"] = _flat(value)
        else:
            renamed[".".join(filter(None, (place, _RESIDUAL.get(inner, inner), kind)))] = value
    return renamed


def _split_qkv(value: Tensor, heads: int) -> tuple[Tensor, ...]:
    """Query, key and value rows of a joint projection (3 C, C, 1) or (3 C,), each (C, C) or (C,)."""
    value = _flat(value)
    if heads < 0:
        return value.chunk(3)
    return tuple(part.flatten(0, 1) for part in value.unflatten(0, (heads, 3, -1)).unbind(1))


def _flat(value: Tensor) -> Tensor:
    """A projection without its spatial axes."""
    return value.flatten(1) if value.ndim > 2 else value


def class_projection(embedding: Tensor) -> State:
    """A class embedding (classes, width) as the library's linear layer on one-hot classes; its bias is zero."""
    return {
        "encoder_hid_proj.weight": embedding.t().contiguous(),
        "encoder_hid_proj.bias": embedding.new_zeros(embedding.shape[1]),
    }


def autoencoder_to_diffusers(state: Mapping[str, Tensor], levels: int) -> State:
    """The tensors of a KL or VQ autoencoder under the library's names; ``levels`` is the number of resolutions."""
    renamed: State = {}
    for key, value in state.items():
        name, attention = _parts_to_diffusers(key, levels)
        if attention:
            prefix, layer, kind = name.rsplit(".", 2)
            name, value = f"{prefix}.{_ATTENTION[layer]}.{kind}", _flat(value)
        renamed[name.replace(".nin_shortcut.", ".conv_shortcut.")] = value
    return renamed


def _parts_to_diffusers(key: str, levels: int) -> tuple[str, bool]:
    """The library's name up to the layer, and whether the layer belongs to an attention block."""
    key = re.sub(r"\.mid\.block_([12])\.", lambda m: f".mid_block.resnets.{int(m[1]) - 1}.", key)
    key = re.sub(r"\.norm_out\.", ".conv_norm_out.", key)
    attention = bool(re.search(r"\.attn(_1)?\.", key))
    key = key.replace(".mid.attn_1.", ".mid_block.attentions.0.")
    match = re.match(r"(encoder\.down|decoder\.up)\.(\d+)\.(\w+)\.(.*)", key)
    if match is None:
        return key, attention
    side, level = match[1], int(match[2])
    level = level if side == "encoder.down" else levels - 1 - level
    part = {"block": "resnets", "attn": "attentions", "downsample": "downsamplers.0", "upsample": "upsamplers.0"}
    return f"{side}_blocks.{level}.{part[match[3]]}.{match[4]}", attention


def autoencoder_from_diffusers(state: Mapping[str, Tensor], levels: int) -> State:
    """The tensors of the library's AutoencoderKL or VQModel under the names of this project."""
    back = {new: old for old, new in _ATTENTION.items()}
    renamed: State = {}
    for key, value in state.items():
        name = key.replace(".conv_shortcut.", ".nin_shortcut.").replace(".conv_norm_out.", ".norm_out.")
        match = re.match(r"(.*\.attentions\.\d+)\.([\w.]+)\.(weight|bias)$", name)
        if match is not None:
            layer = back[_OLDER.get(match[2], match[2])]
            name = f"{match[1]}.{layer}.{match[3]}"
            value = value.reshape(*value.shape, 1, 1) if value.ndim == 2 else value
        renamed[_parts_from_diffusers(name, levels)] = value
    return renamed


def _parts_from_diffusers(name: str, levels: int) -> str:
    name = re.sub(r"\.mid_block\.resnets\.([01])\.", lambda m: f".mid.block_{int(m[1]) + 1}.", name)
    name = name.replace(".mid_block.attentions.0.", ".mid.attn_1.")
    match = re.match(r"(encoder\.down|decoder\.up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name)
    if match is None:
        return name
    level = int(match[2]) if match[1] == "encoder.down" else levels - 1 - int(match[2])
    part = {"resnets": f"block.{match[4]}", "attentions": f"attn.{match[4]}"}
    resample = {"downsamplers": "downsample", "upsamplers": "upsample"}
    return f"{match[1]}.{level}.{part.get(match[3]) or resample[match[3]]}.{match[5]}"
