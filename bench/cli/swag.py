"""`swag`: fit PTYL's prior on a folder of source images."""

import argparse

from bench.cli.arguments import Subparsers, add_command, to_path


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers, "swag", _swag, "fit PTYL's prior on a folder of source images, one folder in it for each class"
    )
    parser.add_argument("folder", type=to_path)
    parser.add_argument("out", type=to_path, help="a .safetensors or .pt file: what backbones.NAME.ptyl takes")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--weights", help="IMAGENET1K_V1 (default), IMAGENET1K_V2, or a local file")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--collect-every", type=int, metavar="STEPS", help="from one iterate to the next (an epoch)")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.001)
    parser.add_argument("--rank", type=int, default=5)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=0, help="processes that decode images")
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: the GPU where there is one)")
    parser.add_argument("--seed", type=int, default=0)


def _swag(options: argparse.Namespace) -> int:
    from bench.cli.console import console
    from deelbo.pretrained.swag_fitting import SwagConfig, fit_swag

    names = ("epochs", "collect_every", "batch_size", "learning_rate", "rank", "image_size", "workers", "seed")
    config = SwagConfig(**{name: getattr(options, name) for name in names})
    places = {"weights": options.weights, "device": options.device}
    out = fit_swag(options.backbone, options.folder, options.out, config, **places, say=console.print)
    console.print(f"PTYL's prior in {out}")
    return 0
