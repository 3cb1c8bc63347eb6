"""A private fine-tuning on the user's own images: settings from public rules, as a short YAML file.

``docs/your-data.md`` has the rules, and the measured runs behind them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ldm.errors import UserError
from ldm.privacy.budget import budget


@dataclass(frozen=True)
class PublicModel:
    """A shipped public model, and the shipped configuration that fine-tunes it.

    ``learning_rate`` is the peak rate of a step, ``clipping_norm`` the median norm of its per-record gradients on
    public images, ``steps`` the length of its schedule.
    """

    name: str
    config: str
    weights: str
    size: int
    channels: int
    classes: int
    learning_rate: float
    clipping_norm: float
    steps: int
    what: str


#: The shipped models that can be fine-tuned privately.
PUBLIC_MODELS = (
    PublicModel(
        name="glyphs32",
        config="configs/quickstart/finetune-dp-eps10.yaml",
        weights="checkpoints/glyphs32-ldm.safetensors",
        size=32,
        channels=1,
        classes=10,
        learning_rate=4.1e-3,
        clipping_norm=0.13,
        steps=50,
        what="32x32 grey, trained on rendered fonts (digits)",
    ),
)

#: The sampling rate of a record, until batches become too large to compute.
RATE = 4
LARGEST_BATCH = 4096

#: Signals (see `Settings.signal`) of measured runs: the smallest with a result near that of the run without privacy,
#: and the smallest with a better result than the public model.
MEASURED_GOOD = 6000
MEASURED_BETTER = 1200


def rounded_up(count: int) -> int:
    """The smallest number of two significant digits above ``count``, so that one more record does not change it."""
    unit = 10 ** max(0, int(math.log10(count)) - 1)
    return (count // unit + 1) * unit


def rounded_down(value: float) -> float:
    """One significant digit, not above ``value``."""
    unit = 10.0 ** math.floor(math.log10(value))
    return float(f"{math.floor(value / unit + 1e-9) * unit:.0e}")


@dataclass(frozen=True)
class Settings:
    """Settings of a private fine-tuning. All are public, because they depend on declarations and on no record."""

    model: PublicModel
    epsilon: float
    dataset_size: int
    delta: float
    batch_size: int
    steps: int
    noise_multiplier: float

    @classmethod
    def for_size(cls, model: PublicModel, epsilon: float, dataset_size: int) -> Settings:
        """The settings for a declared number of records. Raises UserError for an epsilon that cannot be met."""
        delta = rounded_down(0.1 / dataset_size)
        batch = min(-(-dataset_size // RATE), LARGEST_BATCH)
        row = budget(batch_size=batch, delta=delta, num_records=dataset_size, steps=model.steps, target_epsilon=epsilon)
        return cls(model, epsilon, dataset_size, delta, batch, model.steps, row.noise_multiplier)

    @property
    def signal(self) -> float:
        """B sqrt(T) / sigma: the signal-to-noise ratio of the average of T steps, in records."""
        return self.batch_size * math.sqrt(self.steps) / self.noise_multiplier

    def outlook(self) -> list[str]:
        """The expected result, from `signal` and the measured runs, before any training."""
        head = (
            f"outlook     batch {self.batch_size:,}, {self.steps} steps, noise multiplier {self.noise_multiplier:.3g}: "
            f"signal B*sqrt(T)/sigma = {self.signal:,.0f}"
        )
        if self.signal >= MEASURED_GOOD:
            return [head, f"            enough: runs from {MEASURED_GOOD:,} came near training without privacy"]
        needed = math.ceil(self.dataset_size * MEASURED_GOOD / self.signal / 100) * 100
        more = f"about {needed:,} images at epsilon {self.epsilon:g} would reach {MEASURED_GOOD:,}"
        if self.signal >= MEASURED_BETTER:
            return [
                head,
                f"            in between: runs from {MEASURED_BETTER:,} were better than the public model, runs from "
                f"{MEASURED_GOOD:,} came near training without privacy; {more}",
            ]
        return [
            head,
            f"            {self.dataset_size:,} images at epsilon {self.epsilon:g} WILL NOT DO: the noise is larger "
            f"than in any run that got better than the public model (signal {MEASURED_BETTER:,})",
            f"            {more}; a larger epsilon helps as well. The samples will look like the public model's",
        ]


def fitting_model(channels: int, classes: int, name: str | None = None) -> PublicModel:
    """The shipped public model for this number of channels and classes. Raises UserError when none fits."""
    models = [model for model in PUBLIC_MODELS if name in (None, model.name)]
    if not models:
        raise UserError(f"--public-model {name}: there is none; shipped are {', '.join(m.name for m in PUBLIC_MODELS)}")
    models = [model for model in models if model.channels == channels]
    if not models:
        raise UserError(
            "the images are in colour, and every shipped public model is grey; type --grey to train on their "
            "luminance, or train a public colour model first (docs/your-data.md says how)"
        )
    fitting = [model for model in models if classes <= model.classes]
    if not fitting:
        most = max(model.classes for model in models)
        raise UserError(f"{classes} classes, and the shipped public models have {most} at most; merge some of them")
    return fitting[0]


def yaml_text(settings: Settings, root: str, class_names: Sequence[str]) -> str:
    """The YAML of a private fine-tuning on the images in ``root``, with a comment on every public declaration."""
    model = settings.model
    names = ", ".join(json.dumps(name, ensure_ascii=False) for name in class_names)
    return f"""\
# Private fine-tuning of the public model {model.name} ({model.what}).
# One record is one image with its label. If a person has several images, keep one of them.
#
# PUBLIC: these lines are declarations of yours. They appear on the card and in the release, and epsilon does not
# protect them: epsilon, delta, dataset_size, class_names.
base: {model.config}

model:
  base_learning_rate: {model.learning_rate / settings.batch_size:.4g}  # x batch {settings.batch_size} = \
{model.learning_rate:g}: change the batch size and this together
  params:
    ckpt_path: {model.weights}
    dp_config:
      enabled: true
      epsilon: {settings.epsilon:g}  # PUBLIC
      delta: {settings.delta:.0e}  # PUBLIC; at most 0.1 / dataset_size
      dataset_size: {settings.dataset_size}  # PUBLIC; the number of images, rounded up. Declare one you may publish
      max_grad_norm: {model.clipping_norm:g}  # half of the public records have larger gradients
      max_batch_size: 256  # memory only

data:
  params:
    batch_size: {settings.batch_size}  # the expected number of images in a step
    train:
      target: ldm.data.folder.ImageFolder
      params:
        root: {json.dumps(root, ensure_ascii=False)}
        size: {model.size}
        channels: {model.channels}
        class_names: [{names}]  # PUBLIC

lightning:
  # logger: wandb  # or mlflow, in place of TensorBoard
  trainer:
    max_steps: {settings.steps}
  callbacks:
    image_logger:
      params:
        disabled: false
        batch_frequency: {max(1, settings.steps // 4)}  # samples of the private model; they cost no privacy
"""
