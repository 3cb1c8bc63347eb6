"""A callback for runs over several processes: each writes down what it has in hand when training ends."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback


class Witness(Callback):
    """Writes ``<rank>.json`` to ``folder``: digest of weights and averages, ledger, run directory, batch sizes."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.sizes: list[int] = []
        self.generator = ""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: dict, batch_idx: int
    ) -> None:
        self.sizes.append(len(batch["class_label"]))
        self.generator = self.generator or hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        digest = hashlib.sha256()
        for name, value in sorted(pl_module.state_dict().items()):
            digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        seen = {
            "weights": digest.hexdigest(),
            "events": [[event.to_dict(), count] for event, count in pl_module.private.ledger.events],
            "run": str(Path(trainer.default_root_dir).resolve()),
            "sizes": self.sizes,
            "generator": self.generator,
            "learning_rate": pl_module.learning_rate,
            "strategy": type(trainer.strategy).__name__,
        }
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(seen))
