"""Writer for adapters in the format of the PEFT library; `ldm.checkpoint.peft_adapter` reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ldm.checkpoint.adapters import AdaptedFile, export_adapter, read_adapted
from ldm.checkpoint.io import save_safetensors
from ldm.checkpoint.lora_names import WRAPPER
from ldm.checkpoint.peft_adapter import CONFIG, WEIGHTS
from ldm.files import check_new_folder, new_folder


def export_peft(source: str | Path, folder: Path, ema: bool = True, alpha: float | None = None) -> int:
    """Write the adapters of a checkpoint, and the condition embedder trained with them, into the new ``folder``.

    EMA weights replace the raw weights unless ``ema`` is False. The metadata of the weights contain the plan and ledger
    of a private run. Returns the number of values; raises UserError for a file without adapters.
    """
    check_new_folder(folder)
    with new_folder(folder) as staging:
        own = staging / "own.safetensors"
        count = export_adapter(source, own, ema, alpha)
        file = read_adapted(own)
        own.unlink()
        state = {WRAPPER + name: value for name, value in file.state.items()}
        memory = {key: json.dumps(value) for key, value in file.memory.items()}
        save_safetensors(state, staging / WEIGHTS[0], {"format": "pt", **memory})
        (staging / CONFIG).write_text(json.dumps(peft_config(file), indent=2) + "\n", encoding="utf-8")
    return count


def peft_config(file: AdaptedFile) -> dict[str, Any]:
    """``adapter_config.json`` for a file of adapters: rank, alpha, layer names, other trained modules.

    Alpha is the scaling times the rank. The patterns list the layers that differ from the first.
    """
    layers = file.require_adapters()
    alphas = {layer: file.scale(layer, rank) * rank for layer, rank in layers.items()}
    rank, alpha = next(iter(layers.values())), next(iter(alphas.values()))
    others = {name.split(".", 1)[0] for name in file.state if name.startswith("cond_stage_model.")}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "target_modules": sorted(layers),
        "modules_to_save": sorted(others) or None,
        "rank_pattern": {layer: value for layer, value in layers.items() if value != rank},
        "alpha_pattern": {layer: value for layer, value in alphas.items() if value != alpha},
    }
