"""`predict`: classes and probabilities of image files, by a saved model."""

from __future__ import annotations

import argparse
import sys

from bench.cli.arguments import Subparsers, add_allow_import, add_command, to_path

MAX_NAMED = 20


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "predict", _predict, "predict the classes of image files by a model")
    parser.add_argument("model", type=to_path, help="folder of `finetune --out` or `export --out`")
    parser.add_argument("files", type=to_path, nargs="+", help="image files, or folders of them")
    parser.add_argument("--out", type=to_path, help="a .csv or .json file (default: CSV on stdout)")
    parser.add_argument(
        "--unreadable", choices=("refuse", "skip"), default="refuse", help="what to do with damaged files"
    )
    add_allow_import(parser)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:NUMBER")


def _predict(options: argparse.Namespace) -> int:
    """Write the predictions; return 1 if some files were skipped, which are named on stderr."""
    from bench.finetune.predictions import check_format, list_files, predict_images, write_predictions
    from bench.utils.imports import add_current_folder
    from bench.utils.text import short
    from deelbo.data.listing import show
    from deelbo.saved_model import load_model

    if options.out is not None:
        check_format(options.out)
    files = list_files(options.files)
    for package in options.allow_import:
        add_current_folder(package)
    model = load_model(options.model, options.device, options.allow_import)
    predictions = predict_images(model, files, options.unreadable == "skip")
    skipped = [f"left out: {show(file)} ({why})" for file, why in predictions.unreadable.items()]
    if len(skipped) > MAX_NAMED:
        skipped[MAX_NAMED:] = [f"left out: {len(skipped) - MAX_NAMED} more"]
    for line in skipped:
        print(line, file=sys.stderr)
    if options.out is None:
        sys.stdout.write(predictions.to_csv())
    else:
        write_predictions(predictions, options.out)
        print(f"{len(predictions.files):,} files: {short(options.out)}")
    return 1 if skipped else 0
