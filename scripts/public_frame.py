"""Take the directions in which a private run will measure its latents from public images.

python scripts/public_frame.py --yaml configs/benchmark/public-digits.yaml --ckpt checkpoints/digits32-ldm.safetensors \
    --output checkpoints/digits32-frame.safetensors
The images are those of the file's data.params.train, which must be public: directions of private images are a query.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ldm.cli import ArgumentParser, pick_device, print_end, run
from ldm.reports.flags import add_device_flag

if TYPE_CHECKING:
    from torch import Tensor


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, write the frame, and print the norms that guide the choice of clip norms."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--yaml", required=True, help="configuration of the public model, with its public training data")
    add("--ckpt", required=True, help="the public model")
    add("--output", required=True, metavar="FILE.safetensors")
    add("--count", type=int, default=4000, help="public images to look at")
    add("--rank", type=int, default=48, help="number of directions")
    add("--whitening", type=float, default=0.5, help="0 keeps the scale of the latents, 1 makes all directions alike")
    add_device_flag(parser)
    args = parser.parse_args(argv)

    from ldm.config import instantiate_from_config, load_config, section_at, to_plain
    from ldm.inference import load_model
    from ldm.training.public_frame import public_frame, save_frame

    node = to_plain(section_at(load_config([args.yaml]), "data.params.train", args.yaml))
    model = load_model(args.yaml, args.ckpt, pick_device(args.device))
    frame, norms, differences = public_frame(
        model, instantiate_from_config(node), args.count, args.rank, args.whitening
    )
    save_frame(frame, args.output, f"{args.count} images of {node['target']} of {args.yaml}")
    print(f"norms of the public images, for clip_norm: {_quantiles(norms)}")
    print(f"norms of their differences from the mean of their class, for a centred round: {_quantiles(differences)}")
    print_end(
        f"{args.output}: {args.rank} directions",
        f"in a YAML file, frame: {args.output} in model.params.dp_config.warm_up, with a clip_norm from above",
    )


def _quantiles(values: Tensor) -> str:
    return ", ".join(f"{share:.0%} {float(values.quantile(share)):.2f}" for share in (0.5, 0.85, 0.95, 0.99))


if __name__ == "__main__":
    run(main)
