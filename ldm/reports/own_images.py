"""A private fine-tuning on the user's own images: settings from public rules, as a short YAML file.

``docs/your-data.md`` has the rules, and the measured runs behind them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ldm.config.written import exact, quoted
from ldm.errors import UserError
from ldm.numbers import rounded_up
from ldm.privacy.accounting import calibrate
from ldm.privacy.budget import budget


@dataclass(frozen=True)
class Moments:
    """Public constants of the class moments of latents.

    ``frame``: file with the directions. ``clip_norm``: bound on a record in them, the norm of 85 % of public images.
    ``spread_norm``: bound on its difference from the mean of its class, the median of public images.
    """

    frame: str
    clip_norm: float
    spread_norm: float


@dataclass(frozen=True)
class PublicModel:
    """A public model, and the shipped configurations that fine-tune it.

    ``learning_rate`` is the peak rate of a step, ``clipping_norm`` the median norm of its per-record gradients on
    public images, ``steps`` the length of its schedule. With ``moments`` the private images enter by class moments,
    and the one step of DP-SGD is almost idle; an empty `Moments.frame` stands for directions that are yet to be made.
    """

    name: str
    configs: tuple[str, ...]
    weights: str
    size: int
    channels: int
    classes: int
    learning_rate: float
    clipping_norm: float
    steps: int
    what: str
    public_data: tuple[str, ...]
    moments: Moments | None = None
    caution: str = ""  # a weakness that measured runs showed


STATISTICS = "configs/own-images/statistics.yaml"
IDLE_RATE = 1e-6

#: The models that `dp-ldm new` starts from; the first that fits is taken.
PUBLIC_MODELS = (
    PublicModel(
        name="clothes32",
        configs=("configs/benchmark/public-clothes.yaml", STATISTICS),
        weights="checkpoints/clothes32-ldm.safetensors",
        size=32,
        channels=1,
        classes=10,
        learning_rate=IDLE_RATE,
        clipping_norm=0.13,
        steps=1,
        what="32x32 grey, trained on public drawings and rendered garments",
        public_data=("rendered garments", "public drawings", "rendered collages"),
        moments=Moments("checkpoints/images32-frame64.safetensors", 10.1, 6.3),
    ),
    PublicModel(
        name="digits32",
        configs=("configs/benchmark/public-digits.yaml", STATISTICS),
        weights="checkpoints/digits32-ldm.safetensors",
        size=32,
        channels=1,
        classes=10,
        learning_rate=IDLE_RATE,
        clipping_norm=0.13,
        steps=1,
        what="32x32 grey, trained on rendered handwriting and fonts (digits)",
        public_data=("rendered handwriting and fonts", "public drawings"),
        moments=Moments("checkpoints/digits32-frame48.safetensors", 9.2, 7.3),
    ),
    PublicModel(
        name="glyphs32",
        configs=("configs/quickstart/finetune-dp-eps10.yaml",),
        weights="checkpoints/glyphs32-ldm.safetensors",
        size=32,
        channels=1,
        classes=10,
        learning_rate=4.1e-3,
        clipping_norm=0.13,
        steps=50,
        what="32x32 grey, trained on rendered fonts (digits)",
        public_data=("ldm.data.glyphs (rendered fonts)",),
    ),
    PublicModel(
        name="colour32",
        configs=("configs/own-images/public-colour-ldm.yaml", STATISTICS),
        weights="checkpoints/colour32-ldm.safetensors",
        size=32,
        channels=3,
        classes=11,
        learning_rate=IDLE_RATE,
        clipping_norm=0.13,
        steps=1,
        what="32x32 colour, trained on rendered collages and public drawings",
        public_data=("rendered collages", "public drawings"),
        moments=Moments("checkpoints/colour32-frame64.safetensors", 12.1, 9.2),
        caution="this small model blurs fine forms: compare --grey where colour does not matter (docs/your-data.md)",
    ),
)

#: Of the public model on draws: chosen on made-up shapes (docs/your-data.md).
FURTHER_TRAINING = "steps: 500, batch_size: 64, learning_rate: 2.0e-3, weight_limit: 100"

#: The sampling rate of a record, until batches become too large to compute.
RATE = 4
LARGEST_BATCH = 4096
#: The share of epsilon that class moments may spend, and of their budget (1 / sigma squared) that the means take.
MOMENTS_SHARE = 0.95
MEANS_SHARE = 0.1
#: The same shares for means, spread and cells, and the cells: chosen on MNIST and Fashion-MNIST (docs/benchmarks.md).
CELL_SHARES, CELLS, LEADING = (0.05, 0.6, 0.35), 4, 24

#: Signals (see `Settings.signal`) of measured runs of DP-SGD: the smallest with a result near that of the run without
#: privacy, and the smallest with a better result than the public model.
MEASURED_GOOD = 6000
MEASURED_BETTER = 1200
#: The signals of class moments (see `Settings.class_signal`) from which two rounds are written, and cells as well.
TWO_ROUNDS, WITH_CELLS = 100, 800
#: The signal of class moments from which the draws of measured runs were good enough to train a classifier on.
MOMENTS_GOOD = 200
#: Least signal, and the accuracy of a CNN trained on 1,000 draws of the rounds that are written from this signal on;
#: the signals of the measured runs are in brackets. ``docs/your-data.md`` has the table.
MOMENTS_MEASURED = (
    (WITH_CELLS, "four drawn shapes 98 to 99 % (846), three kinds of metal parts 78 to 87 % (1,129 and 2,000)"),
    (MOMENTS_GOOD, "four drawn shapes 88 % (206), three kinds of metal parts 75 to 81 % (275)"),
    (TWO_ROUNDS, "four drawn shapes 66 to 71 % (96), three kinds of metal parts 49 to 61 % (128)"),
    (0, "four drawn shapes 46 to 55 % (25) and 65 to 68 % (96)"),
)


def declared_count(count: int) -> int:
    """The smallest number of two significant digits above ``count``, so that one more record does not change it."""
    unit = 10 ** max(0, int(math.log10(count)) - 1)
    return (count // unit + 1) * unit


def declared_delta(value: float) -> float:
    """One significant digit, not above ``value``."""
    unit = 10.0 ** math.floor(math.log10(value))
    return float(f"{math.floor(value / unit + 1e-9) * unit:.0e}")


@dataclass(frozen=True)
class Settings:
    """Settings of a private fine-tuning. All are public, because they depend on declarations and on no record.

    ``noise_multiplier`` is that of the class moments for a model with `Moments`, else that of a step.
    """

    model: PublicModel
    epsilon: float
    dataset_size: int
    classes: int
    delta: float
    batch_size: int
    steps: int
    noise_multiplier: float

    @classmethod
    def for_size(cls, model: PublicModel, epsilon: float, dataset_size: int, classes: int) -> Settings:
        """The settings for a declared number of records. Raises UserError for an epsilon that cannot be met."""
        delta = declared_delta(0.1 / dataset_size)
        batch = min(-(-dataset_size // RATE), LARGEST_BATCH)
        if model.moments is None:
            row = budget(
                batch_size=batch, delta=delta, num_records=dataset_size, steps=model.steps, target_epsilon=epsilon
            )
            noise = row.noise_multiplier
        else:
            noise = calibrate(target_epsilon=MOMENTS_SHARE * epsilon, delta=delta, sample_rate=1.0, steps=1)
            noise = math.ceil(noise * 1000) / 1000
        return cls(model, epsilon, dataset_size, classes, delta, batch, model.steps, noise)

    @property
    def shares(self) -> tuple[float, ...]:
        """What each round of class moments takes of their budget: one query, or the means, the spread around them and,
        from a large signal on, cells.

        A small part of a small budget would not find the means, and one of a moderate budget no cells.
        """
        if self.class_signal < TWO_ROUNDS:
            return (1.0,)
        return CELL_SHARES if self.class_signal >= WITH_CELLS else (MEANS_SHARE, 1 - MEANS_SHARE)

    @property
    def signal(self) -> float:
        """B sqrt(T) / sigma: the signal-to-noise ratio of the average of T steps, in records."""
        return self.batch_size * math.sqrt(self.steps) / self.noise_multiplier

    @property
    def class_signal(self) -> float:
        """N / (classes sigma): records of a class over the noise of its moments."""
        return self.dataset_size / (self.classes * self.noise_multiplier)

    def outlook(self) -> list[str]:
        """The expected result, from the signal and the measured runs, before any training."""
        head, *rest = self._of_steps() if self.model.moments is None else self._of_moments()
        rest += [self.model.caution] if self.model.caution else []
        return [f"outlook     {head}", *(f"            {line}" for line in rest)]

    def _of_steps(self) -> list[str]:
        """The settings of DP-SGD with their signal, and what runs with such a signal have shown."""
        signal, good = self.signal, MEASURED_GOOD
        head = (
            f"batch {self.batch_size:,}, {self.steps} steps, noise multiplier {self.noise_multiplier:.3g}: "
            f"signal B*sqrt(T)/sigma = {signal:,.0f}"
        )
        if signal >= good:
            return [head, f"enough: measured runs from {good:,} came near what is possible (docs/your-data.md)"]
        more = self._more(signal, good)
        if signal >= MEASURED_BETTER:
            return [
                head,
                f"in between: measured runs from {MEASURED_BETTER:,} showed the classes, runs from {good:,} came near "
                f"what is possible; {more}",
            ]
        why = f"the noise is larger than in any measured run that showed the classes well (signal {MEASURED_BETTER:,})"
        return [head, *self._not_enough(why, more)]

    def _of_moments(self) -> list[str]:
        """The rounds of class moments with their signal, and what was measured at such a signal."""
        signal = self.class_signal
        rounds = {1: "one round", 2: "two rounds (means, spread)", 3: f"three rounds (means, spread, {CELLS} cells)"}
        lines = [
            f"class moments in {rounds[len(self.shares)]}, noise multiplier {self.noise_multiplier:.3g}: "
            f"signal N/(classes*sigma) = {signal:,.0f}"
        ]
        more = self._more(signal, MOMENTS_GOOD)
        if signal >= MOMENTS_GOOD:
            lines.append(f"enough to train a classifier on draws of the statistics (from a signal of {MOMENTS_GOOD})")
        elif signal >= TWO_ROUNDS:
            lines.append(f"in between: draws of the statistics show the classes, but not well; {more}")
        else:
            lines += self._not_enough(f"below a signal of {TWO_ROUNDS} the noise hides most of the statistics", more)
        return [
            *lines,
            "accuracy of a CNN trained on 1,000 draws, made-up grey images, signal in brackets (yours may differ):",
            next(found for least, found in MOMENTS_MEASURED if signal >= least),
            "dp-ldm sample takes such draws (sampling.source in the file); docs/your-data.md has the tables",
        ]

    def _more(self, signal: float, good: int) -> str:
        needed = math.ceil(self.dataset_size * good / signal / 100) * 100
        return f"about {needed:,} images at epsilon {rounded_up(self.epsilon, 6)} would reach {good:,}"

    def _not_enough(self, why: str, more: str) -> list[str]:
        return [
            f"{self.dataset_size:,} images at epsilon {rounded_up(self.epsilon, 6)} WILL NOT DO: {why}",
            f"{more}; a larger epsilon helps as well, and so do fewer classes",
        ]


def fitting_model(channels: int, classes: int, name: str | None = None, weights: str = "") -> PublicModel:
    """The public model for this number of channels and classes.

    ``weights`` is the file of a training of the user's own with the model's configuration; shipped directions do not
    fit its latents. Raises UserError when none fits.
    """
    models = [model for model in PUBLIC_MODELS if name in (None, model.name)]
    if not models:
        raise UserError(f"--public-model {name}: there is none; known are {', '.join(m.name for m in PUBLIC_MODELS)}")
    models = [model for model in models if model.channels == channels]
    if not models:
        raise UserError(f"--public-model {name} is for {'grey' if channels == 3 else 'colour'} images; leave it out")
    fitting = [model for model in models if classes <= model.classes]
    if not fitting:
        most = max(model.classes for model in models)
        raise UserError(f"{classes} classes, and the public models have {most} at most; merge some of them")
    model = fitting[0]
    if not weights:
        return model
    return replace(
        model,
        weights=weights,
        what=f"your own training of {model.configs[0]}",
        public_data=(f"the public data of {weights}", "rendered collages"),
        moments=None if model.moments is None else Moments("", 0.0, 0.0),
        caution="",
    )


def yaml_text(settings: Settings, root: str, class_names: Sequence[str]) -> str:
    """The YAML of a private fine-tuning on the images in ``root``, with a comment on every public declaration."""
    model = settings.model
    names = ", ".join(json.dumps(name, ensure_ascii=False) for name in class_names)
    peak = f"= {model.learning_rate:g}: change the batch size and this together"
    if model.moments is not None:
        peak = f"= {model.learning_rate:g}: almost idle, the class moments carry the run"
    bases = model.configs[0] if len(model.configs) == 1 else "[" + ", ".join(model.configs) + "]"
    return f"""\
# Private fine-tuning of the public model {model.name} ({model.what}).
# One record is one image with its label. If a person has several images, keep one of them.
#
# PUBLIC: these lines are declarations of yours. They appear on the card and in the release, and epsilon does not
# protect them: epsilon, delta, dataset_size, class_names{", sampling" if model.moments is not None else ""}.
base: {bases}

model:
  base_learning_rate: {model.learning_rate / settings.batch_size:.4g}  # x batch {settings.batch_size} {peak}
  params:
    ckpt_path: {quoted(model.weights)}
    dp_config:
      enabled: true
      epsilon: {exact(settings.epsilon)}  # PUBLIC
      delta: {settings.delta:.0e}  # PUBLIC; at most 0.1 / dataset_size
      dataset_size: {settings.dataset_size}  # PUBLIC; the number of images, rounded up. Declare one you may publish
      max_grad_norm: {model.clipping_norm:g}  # half of the public records have larger gradients
      max_batch_size: 256  # memory only
      public_data: {json.dumps(list(model.public_data))}
{_moments_text(settings)}{_sampling_text(settings)}
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


def _rounds_text(settings: Settings, moments: Moments) -> str:
    """The rounds as `Settings.shares` has them."""
    sigma, shares = settings.noise_multiplier, settings.shares
    if len(shares) == 1:
        return f"          - {{noise_multiplier: {sigma:g}}}\n"
    means, spread, *cells = (math.ceil(100 * sigma / math.sqrt(share)) / 100 for share in shares)
    around = f"weights: [0.2, 0.3, 1], centred: true, clip_norm: {moments.spread_norm:g}"
    lines = [
        f"          - {{noise_multiplier: {means:g}, weights: [1, 1, 0]}}  # counts and means",
        f"          - {{noise_multiplier: {spread:g}, {around}}}",
    ]
    for noise in cells:
        which = f"cells: {CELLS}, second_by_cell: true, leading: {LEADING}"
        lines.append(f"          - {{noise_multiplier: {noise:g}, weights: [0.5, 0.7, 1], centred: true, {which}}}")
    return "".join(f"{line}\n" for line in lines)


def _moments_text(settings: Settings) -> str:
    """The part of the YAML about class moments; "" without them."""
    moments = settings.model.moments
    if moments is None:
        return ""
    return f"""\
      warm_up:  # noisy moments of each class's latents, then training on draws from them
        frame: {quoted(moments.frame)}  # public directions
        clip_norm: {moments.clip_norm:g}  # bound on a record in them; a quantile of public images
        classes: {settings.classes}
        rounds:  # {MOMENTS_SHARE:.0%} of epsilon, as one query with noise multiplier {settings.noise_multiplier:g}
{_rounds_text(settings, moments)}        training: {{{FURTHER_TRAINING}}}  # costs no privacy
"""


def _sampling_text(settings: Settings) -> str:
    """The section on what images are taken from; "" for a model without statistics to draw from."""
    if settings.model.moments is None:
        return ""
    return """
sampling:
  source: draws  # PUBLIC; dp-ldm sample decodes draws of the class moments. model: samples of the diffusion model
"""
