"""Where a run of `dp-ldm new` and `dp-ldm train` loses accuracy: a CNN trained on the images of every stage.

python benchmarks/own_images.py my-shapes.yaml logs/TIME_my-shapes my-shapes-test

The stages are the images of the folder, their reconstructions by the autoencoder, images decoded from draws of the
released statistics, and samples of the trained model. The CNN is scored on the folder my-shapes-test, which nobody
trained on. The first two stages are computed from the images themselves: this is for made-up folders only.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.cli import ArgumentParser, run
from ldm.config import load_config
from ldm.data.folder import ImageFolder
from ldm.inference import SamplingOptions, labels_for, load_model, sample_batches
from ldm.reports.benchmark.statistics_only import draws_of
from ldm.reports.model_files import ModelFiles
from ldm.samples import SampleSet

STAGES = ("real", "reconstructions", "draws", "samples")


def images_of(folder: Path, size: int, channels: int, names: list[str]) -> SampleSet:
    """All images of a folder, framed as those of the run: (N, channels, size, size) in [-1, 1], with labels."""
    data = ImageFolder(root=folder, size=size, channels=channels, class_names=names)
    images = torch.stack([torch.as_tensor(data[place]["image"]) for place in range(len(data))])
    return SampleSet(images.permute(0, 3, 1, 2).contiguous(), torch.as_tensor(data.labels))


@torch.no_grad()
def reconstructed(model: Any, images: Tensor) -> Tensor:
    """Images through the autoencoder: posterior means, decoded."""
    parts = []
    for part in images.split(250):
        latents = model.encode_moments(part)[:, : model.channels] * float(model.scale_factor)
        parts.append(model.decode_first_stage(latents).clamp(-1, 1))
    return torch.cat(parts)


def sampled(model: Any, classes: int, count: int) -> SampleSet:
    """Samples of the model by the defaults of `dp-ldm sample`, as many of each class."""
    labels = labels_for(range(classes), count)
    return SampleSet(torch.cat(list(sample_batches(model, count, SamplingOptions(seed=0), labels))), labels)


def network(channels: int, classes: int) -> nn.Module:
    """Three convolutions for 32x32 images, fast on one core."""

    def block(before: int, after: int, kernel: int, stride: int = 1) -> list[nn.Module]:
        return [nn.Conv2d(before, after, kernel, stride, kernel // 2), nn.BatchNorm2d(after), nn.ReLU()]

    return nn.Sequential(
        *block(channels, 16, 5, stride=2),
        nn.MaxPool2d(2),
        *block(16, 48, 3),
        nn.MaxPool2d(2),
        *block(48, 96, 3),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.LazyLinear(classes),
    )


def accuracy(train: SampleSet, test: SampleSet, classes: int, steps: int = 400, batch: int = 64) -> float:
    """Percent of ``test`` that a network says right after ``steps`` of Adam on batches of ``train``."""
    assert train.labels is not None and test.labels is not None
    torch.manual_seed(0)
    model = network(train.images.shape[1], classes)
    model(train.images[:2])  # the last layer takes its size
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    rows = torch.cat([torch.randperm(len(train.images)) for _ in range(-(-steps * batch // len(train.images)))])
    for part in rows[: steps * batch].split(batch):
        optimizer.zero_grad()
        F.cross_entropy(model(train.images[part]), train.labels[part]).backward()
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        said = torch.cat([model(part).argmax(dim=1) for part in test.images.split(500)])
    return 100 * float((said == test.labels).float().mean())


def main() -> None:
    """Parse the command line, train a CNN for every stage and print its accuracy."""
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("yaml", type=Path, help="file of dp-ldm new")
    parser.add_argument("run", type=Path, help="run directory of dp-ldm train")
    parser.add_argument("test", type=Path, help="folder of held-out images with the same classes")
    parser.add_argument("--count", type=int, default=1000, help="draws and samples")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="stages to measure")
    args = parser.parse_args()
    train = load_config([args.yaml]).data.params.train.params
    names = list(train.class_names)
    folder, test = (
        images_of(place, train.size, train.channels, names) for place in (args.yaml.parent / train.root, args.test)
    )
    files = ModelFiles.find(args.run)
    model = load_model(files.config, files.weights, torch.device("cpu"))
    makers: dict[str, Callable[[], SampleSet]] = {
        "real": lambda: folder,
        "reconstructions": lambda: SampleSet(reconstructed(model, folder.images), folder.labels),
        "draws": lambda: draws_of(args.run, args.yaml, {}, args.count),
        "samples": lambda: sampled(model, len(names), args.count),
    }
    for stage in args.stages:
        images = makers[stage]()
        score = accuracy(images, test, len(names))
        print(f"{stage:16} {len(images.images):6,} images  {score:5.1f} %", flush=True)


if __name__ == "__main__":
    run(main)
