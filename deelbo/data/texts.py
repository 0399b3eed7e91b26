"""A user's own texts in a CSV file, and their token ids for a network of Hugging Face's transformers.

`list_texts` needs no torch; `read_texts` needs transformers, whose tokenizer is that of the network. Every fault is a
`DataError` of one line. Nothing is downloaded, and no code that comes with a tokenizer is run.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deelbo.data.integrity import DataError, as_data_error
from deelbo.data.listing import (
    ExampleList,
    LabeledText,
    Row,
    check_rows,
    is_test,
    read_csv,
    show,
    split_examples,
)
from deelbo.paths import expand_user

if TYPE_CHECKING:
    from torch import Tensor

    from deelbo.data.dataset import Task

INSTALL = "pip install 'deelbo[text]'"
CHUNK = 10_000  # texts whose token ids are Python's numbers at one time


@dataclass(frozen=True)
class TextSource:
    """Location of a user's texts, and how to read them.

    Attributes:
        path: a CSV file with these columns and, not necessarily, split ("train" or "test").
        text: columns whose texts, joined by a space, are an example.
        label: column of the class.
        test_share: share of each class that is held out as the test set, where there is none; the same for every
            seed. 0: no test set.
        tokenizer: folder or name of the network whose tokenizer makes token ids; None: the texts can only be listed.
        max_length: tokens of a text beyond which it is cut; None: as many as the network takes.
    """

    path: str
    text: tuple[str, ...]
    label: str
    test_share: float = 0.2
    tokenizer: str | None = None
    max_length: int | None = None

    def tokenized_by(self, tokenizer: str, max_length: int | None) -> TextSource:
        """Return the same texts for another network."""
        return replace(self, tokenizer=tokenizer, max_length=max_length)


TextList = ExampleList[LabeledText]


def list_texts(name: str, source: TextSource) -> TextList:
    """Read a dataset's texts and labels; ``name`` is for the messages."""
    path = expand_user(source.path)
    if not path.is_file():
        found = f"there is no {show(path)}" if not path.exists() else f"{show(path)} is not a file"
        raise DataError(f"{name}: {found}: correct the path, or bring the CSV file to this machine")
    columns = list(dict.fromkeys([*source.text, source.label]))
    expected = f"expected a first line that names the columns {', '.join(columns)}, separated by commas"
    rows = read_csv(name, path, columns, expected)
    parsed = [(line, row if isinstance(row, str) else _labeled_text(row, source, line)) for line, row in rows]
    texts = check_rows(name, path, parsed)
    return split_examples(name, ExampleList(path, (), tuple(texts), kind="texts"), path, source.test_share)


def _labeled_text(row: Row, source: TextSource, line: int) -> LabeledText | str:
    """Return what a row says, or what is wrong with it."""
    text = " ".join(part for column in source.text if (part := row[column].strip()))
    label = unicodedata.normalize("NFC", row[source.label].strip())
    if not text or not label:
        return "the text is empty" if not text else "no label"
    return LabeledText(text, label, is_test(row), line)


def check_texts(name: str, source: TextSource) -> None:
    """Raise what `read_texts` would raise; a tokenizer need not be given."""
    list_texts(name, source)
    if source.tokenizer is not None:
        load_tokenizer(source.tokenizer, source.max_length)


def read_texts(name: str, source: TextSource) -> Task:
    """Return a dataset of token ids, int32 (n, L), L being the length of its longest text, padded on the right.

    Its fingerprint is of the texts and labels, not of the token ids.
    """
    import torch

    from deelbo.data.dataset import Task
    from deelbo.data.examples import Examples, Transform

    listed = list_texts(name, source)
    if source.tokenizer is None:
        raise DataError(f"{name}: texts need the tokenizer of a network: give one")
    tokenizer, pad_id, longest = load_tokenizer(source.tokenizer, source.max_length)
    numbers = {label: number for number, label in enumerate(listed.classes)}
    tokens = [_tokenize(tokenizer, [e.text for e in part], longest) for part in (listed.training, listed.test)]
    length = max(len(row) for part in tokens for row in part)
    examples = []
    for rows, part in zip(tokens, (listed.training, listed.test), strict=True):
        inputs = torch.full((len(rows), length), pad_id, dtype=torch.int32)
        for i, row in enumerate(rows):
            inputs[i, : len(row)] = row
        labels = torch.tensor([numbers[example.label] for example in part], dtype=torch.int64)
        examples.append(Examples(inputs, labels, len(listed.classes)))
    pool, test = examples
    return Task(name, pool, test, Transform(), proportional=True, content=_hash(listed), classes=listed.classes)


def load_tokenizer(model: str, max_length: int | None) -> tuple[Any, int, int]:
    """Return the tokenizer of a network, its padding id, and the number of tokens to which texts are cut.

    Args:
        model: a folder with config.json and tokenizer.json or vocab.txt, or the name of one in Hugging Face's cache.
        max_length: at most as many as the network takes; None: that many.

    Raises:
        DataError: a package or file is missing, the tokenizer has no padding, or ``max_length`` is too large.
    """
    try:
        from transformers import AutoConfig, AutoTokenizer  # takes seconds to import
    except ImportError as error:
        raise DataError(f"texts need the package {error.name}, which is not installed: {INSTALL}") from None
    folder = find_model(model)
    is_here = Path(folder).is_absolute()
    remedy = "give the folder of a model with config.json and tokenizer.json or vocab.txt"
    missing = "" if is_here else ", which is not a folder here, perhaps because it is not in Hugging Face's cache"
    with as_data_error(f"the tokenizer of {model} cannot be read{missing}", remedy):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes where no file has them
            raise ValueError("no vocabulary")
        if len(tokenizer) > (known := config.get_text_config().vocab_size):
            raise ValueError(f"{len(tokenizer):,} tokens, the network has {known:,}")
    limits = [tokenizer.model_max_length, getattr(config, "max_position_embeddings", None)]
    longest = min(int(limit) for limit in limits if limit)
    if max_length is not None and max_length > longest:
        raise DataError(f"max_length = {max_length} of {model}: it takes at most {longest} tokens: choose fewer")
    pad_id = config.pad_token_id
    if pad_id is None or tokenizer.pad_token_id not in (None, pad_id):
        found = f"pad_token_id {pad_id} in its config.json, {tokenizer.pad_token_id} in its tokenizer"
        raise DataError(f"the padding of {model} is not known ({found}): write one id in both")
    return tokenizer, pad_id, max_length or longest


def find_model(model: str) -> str:
    """Return a folder as an absolute path, or the name of a model in Hugging Face's cache as it is."""
    path = expand_user(model)
    if path.is_dir():
        return str(path.absolute())
    if path.exists() or Path(model).is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise DataError(f"there is no folder {show(path)}: give a folder of a model, or its name at Hugging Face")
    return model


def encode(model: str, texts: Sequence[str], max_length: int | None = None) -> Tensor:
    """Return texts as token ids, int32 (n, L), padded on the right; the arguments are those of `load_tokenizer`."""
    from torch.nn.utils.rnn import pad_sequence

    tokenizer, pad_id, longest = load_tokenizer(model, max_length)
    return pad_sequence(_tokenize(tokenizer, texts, longest), batch_first=True, padding_value=pad_id)


def _tokenize(tokenizer: Any, texts: Sequence[str], longest: int) -> list[Any]:
    """Return the token ids of each text, cut to ``longest``; int32 tensors."""
    import torch

    rows = []
    for start in range(0, len(texts), CHUNK):
        found = tokenizer(list(texts[start : start + CHUNK]), truncation=True, max_length=longest)
        rows += [torch.tensor(ids, dtype=torch.int32) for ids in found["input_ids"]]
    return rows


def _hash(listed: TextList) -> str:
    """Return 16 hex digits of a SHA-256 over all texts, labels and their split."""
    digest = hashlib.sha256()
    for example in listed.examples:
        parts = int(example.is_test), len(example.label), example.label, len(example.text), example.text
        digest.update(" ".join(map(str, parts)).encode())
    return digest.hexdigest()[:16]
