"""What a public autoencoder keeps of images: the pixel error, and the accuracy of a classifier on reconstructions.

python benchmarks/made_up_folders.py flowers train --count 3000 && \
python benchmarks/made_up_folders.py flowers test --count 600 --seed 1
python benchmarks/through_autoencoder.py train test --public-model colour32
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ldm.cli import ArgumentParser, run, seed
from ldm.data.collages import CollagesVal
from ldm.data.folder import ImageFolder
from ldm.evaluation.classifiers.downstream import downstream_accuracy
from ldm.evaluation.classifiers.protocols import ClassifierProtocol
from ldm.inference import load_model
from ldm.reports.own_images import PUBLIC_MODELS, PublicModel
from ldm.samples import SampleSet
from ldm.shipped import find_shipped

COLLAGES = 1000
EPOCHS = 10


def all_of(dataset: Dataset) -> tuple[Tensor, Tensor]:
    """The images (N, C, H, W) in [-1, 1] and labels (N,) of a data set."""
    items = [dataset[place] for place in range(len(dataset))]  # type: ignore[arg-type]
    images = torch.stack([torch.as_tensor(item["image"]) for item in items]).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor([item["class_label"] for item in items])


@torch.no_grad()
def through(model: torch.nn.Module, images: Tensor, batch: int = 250) -> Tensor:
    """The images decoded from the means of their latents, in [-1, 1]."""
    parts = []
    for start in range(0, len(images), batch):
        means = model.encode_moments(images[start : start + batch])[:, : model.channels]
        parts.append(model.decode_first_stage(means * float(torch.as_tensor(model.scale_factor))).clamp(-1, 1))
    return torch.cat(parts)


def error(images: Tensor, others: Tensor) -> float:
    """Root of the mean squared error of pixels from 0 to 1."""
    return float(((images - others) / 2).square().mean().sqrt())


def public_model(name: str, weights: Path | None) -> tuple[PublicModel, torch.nn.Module]:
    """A model of the catalogue of ``dp-ldm new``, with its shipped weights or others."""
    entry = next(model for model in PUBLIC_MODELS if model.name == name)
    config = find_shipped(entry.configs[0])
    file = weights or find_shipped(entry.weights)
    assert config is not None and file is not None, entry
    return entry, load_model(config, file, torch.device("cpu"))


def main() -> None:
    """Parse the command line, compute, and print five lines."""
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("train", type=Path, help="folder of images, a subfolder a class; the classifier is trained on them")
    add("test", type=Path, help="another such folder; the classifier is scored on it")
    add("--public-model", default="colour32", choices=[model.name for model in PUBLIC_MODELS])
    add("--weights", type=Path, help="weights other than the shipped ones")
    add("--seed", type=seed, default=0, help="of the classifier")
    args = parser.parse_args()
    entry, model = public_model(args.public_model, args.weights)
    size = {"size": entry.size, "channels": entry.channels}
    collages, _ = all_of(CollagesVal(COLLAGES, **size))
    print(f"collages held out: RMSE {error(collages, through(model, collages)):.4f} of pixels from 0 to 1", flush=True)
    train, labels = all_of(ImageFolder(args.train, **size))
    test, wanted = all_of(ImageFolder(args.test, **size))
    kept, kept_test = through(model, train), through(model, test)
    print(f"{args.test}: RMSE {error(test, kept_test):.4f}", flush=True)
    protocol = ClassifierProtocol(name="plain", selection="last", epochs=EPOCHS, lr=1e-3, grey=entry.channels == 1)
    tests = {"images": test, "reconstructions": kept_test}
    for name, images in (("images", train), ("reconstructions", kept)):
        for scored, others in tests.items():
            (row,) = downstream_accuracy(
                SampleSet(images, labels),
                SampleSet(others, wanted),
                classifiers=("cnn",),
                protocol=protocol,
                seeds=(args.seed,),
                device=torch.device("cpu"),
            )
            print(f"CNN trained on {name}, scored on {scored}: {100 * row.mean:.1f} %", flush=True)


if __name__ == "__main__":
    run(main)
