"""A private run through main.py, with clocks around its parts; prints the shares of its CPU time as JSON.

python -m benchmarks.epoch --steps 4
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from ldm.cli import ArgumentParser, run


class Clocks:
    """CPU seconds of functions that are wrapped with :meth:`around`, by name."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def around(self, owner: Any, function: str, name: str) -> None:
        """Replace ``owner.function`` by one that is timed."""
        original: Callable[..., Any] = getattr(owner, function)

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            try:
                return original(*args, **kwargs)
            finally:
                self.seconds[name] += time.process_time() - started

        setattr(owner, function, timed)


def measure(steps: int, config: str) -> dict[str, float]:
    """Shares of the CPU time of `Trainer.fit` of a run of ``steps`` private steps."""
    import pytorch_lightning as pl

    from ldm.models.diffusion.private_training import PrivateTraining
    from ldm.privacy.clipping import PerRecordClipper
    from ldm.training import train
    from ldm.training.options import RunOptions

    clocks = Clocks()
    clocks.around(pl.Trainer, "fit", "fit")
    clocks.around(PrivateTraining, "step", "step")
    clocks.around(PrivateTraining, "verify", "verification")
    clocks.around(PerRecordClipper, "accumulate", "microbatches")
    clocks.around(pl.Trainer, "save_checkpoint", "checkpoints")
    with tempfile.TemporaryDirectory() as folder:
        trainer = {"accelerator": "cpu", "max_steps": steps, "enable_progress_bar": False}
        train(RunOptions(base=[config], train=True, logdir=folder, trainer=trainer))
    found = clocks.seconds
    whole = found["fit"] - found["verification"]
    return {
        "network forward and backward, norms and sums": found["microbatches"] / whole,
        "draws, noise, optimizer, average": (found["step"] - found["microbatches"]) / whole,
        "checkpoints": found["checkpoints"] / whole,
        "loader, logs, callbacks and the rest": (whole - found["step"] - found["checkpoints"]) / whole,
    }


def main() -> None:
    parser = ArgumentParser(prog="epoch.py", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4, help="private steps")
    parser.add_argument(
        "--config", default="configs/quickstart/finetune-dp-eps10.yaml", help="configuration of the run"
    )
    args = parser.parse_args()
    if args.steps < 1:
        parser.error(f"--steps {args.steps}: give 1 or more")
    print(json.dumps(measure(args.steps, args.config)), file=sys.stdout)


if __name__ == "__main__":
    run(main)
