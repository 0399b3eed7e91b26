"""`predict`: classes and probabilities of image files or texts, by a saved model."""

from __future__ import annotations

import argparse
import sys

from bench.cli.arguments import Subparsers, add_allow_import, add_command, to_path

MAX_NAMED = 20


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "predict", _predict, "predict the classes of image files or texts by a model")
    parser.add_argument("model", type=to_path, help="folder of `finetune --out` or `export --out`")
    parser.add_argument("files", type=to_path, nargs="+", help="image files, folders of them, or CSV files of texts")
    parser.add_argument(
        "--text", action="append", default=[], metavar="COLUMN", help="column of texts (default: as in training)"
    )
    parser.add_argument("--max-length", type=int, help="tokens to which texts are cut (default: as in training)")
    parser.add_argument("--out", type=to_path, help="a .csv or .json file (default: CSV on stdout)")
    parser.add_argument(
        "--unreadable", choices=("refuse", "skip"), default="refuse", help="what to do with damaged files"
    )
    add_allow_import(parser)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:NUMBER")


def _predict(options: argparse.Namespace) -> int:
    """Write the predictions; return 1 if some files were skipped, which are named on stderr."""
    from bench.finetune.predictions import (
        check_format,
        is_text,
        list_files,
        predict_images,
        predict_texts,
        write_predictions,
    )
    from bench.utils.imports import add_current_folder
    from bench.utils.text import short
    from deelbo.data.listing import show
    from deelbo.saved_model import load_model

    files = list_files(options.files)
    if options.out is not None:
        check_format(options.out, [*files, *options.model.glob("*.json")])
    for package in options.allow_import:
        add_current_folder(package)
    model = load_model(options.model, options.device, options.allow_import)
    skip = options.unreadable == "skip"
    if is_text(model):
        predictions = predict_texts(model, files, options.text, options.max_length, skip)
    else:
        predictions = predict_images(model, files, skip)
    skipped = [f"left out: {show(file)} ({why})" for file, why in predictions.unreadable.items()]
    if len(skipped) > MAX_NAMED:
        skipped[MAX_NAMED:] = [f"left out: {len(skipped) - MAX_NAMED} more"]
    for line in skipped:
        print(line, file=sys.stderr)
    if options.out is None:
        sys.stdout.write(predictions.to_csv())
    else:
        write_predictions(predictions, options.out)
        print(f"{len(predictions.files):,} predictions: {short(options.out)}")
    return 1 if skipped else 0
