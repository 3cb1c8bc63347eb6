"""Creates the run directory and stores the configuration of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import Callback

from callbacks.step_clock import StepClock, show_text
from ldm.files import write_text


class SetupCallback(Callback):
    """Writes ``configs/<stamp>-project.yaml`` and ``configs/<stamp>-lightning.yaml`` before training starts.

    TensorBoard shows them too.
    """

    def __init__(self, run_dir: str, stamp: str, project_config: Any, lightning_config: Any):
        self.run_dir = Path(run_dir)
        self.stamp = stamp
        self.config = OmegaConf.create(project_config)
        self.lightning_config = OmegaConf.create(lightning_config)
        #: Clock of TensorBoard's times in a private run.
        self.clock: StepClock | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self.write()
            text = OmegaConf.to_yaml(OmegaConf.merge(self.config, {"lightning": self.lightning_config}))
            indented = "".join(f"    {line}\n" for line in text.splitlines())  # code, in Markdown
            show_text(getattr(trainer, "loggers", ()), "config", indented, self.clock)

    def write(self) -> None:
        """Make the run directory and write the configuration into it."""
        for folder in ("checkpoints", "configs"):
            (self.run_dir / folder).mkdir(parents=True, exist_ok=True)
        for kind, content in (
            ("project", self.config),
            ("lightning", OmegaConf.create({"lightning": self.lightning_config})),
        ):
            write_text(self.run_dir / "configs" / f"{self.stamp}-{kind}.yaml", OmegaConf.to_yaml(content))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # stored with the weights, because tensor shapes do not determine settings such as head counts
        checkpoint["model_config"] = OmegaConf.to_container(self.config.model, resolve=True)
