"""A user's own texts in a CSV file: what is read, what is held out, how it is tokenized, and what is refused."""

import csv
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from deelbo.data import ImageSource, TextSource, check_task, find_task, load_task, source_from
from deelbo.data.integrity import DataError
from deelbo.data.listing import hold_out
from deelbo.data.texts import list_texts, load_tokenizer, read_texts
from tests.helpers.tiny_bert import VOCABULARY, write_bert

HEADER = ("title", "description", "class")
WORDS = {"sport": "ball team", "world": "king war", "científico": "atom cell"}
FOUND = [p / "shared" / "data" / "ag_news_test.csv" for p in Path(__file__).parents]
AG_NEWS = next((path for path in FOUND if path.is_file()), None)


def write_csv(path: Path, rows: Sequence[Sequence[str]], header: Sequence[str] = HEADER) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def news(count: int = 10) -> list[tuple[str, str, str]]:
    """Return ``count`` rows of each class."""
    return [(f"Title {i}", f"{words} {i}", label) for label, words in WORDS.items() for i in range(count)]


def source(path: Path, **settings: object) -> TextSource:
    return TextSource(str(path), **{"text": ("title", "description"), "label": "class"} | settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("bert"))


def test_texts_without_a_test_set(tmp_path: Path, bert: Path) -> None:
    """Columns are joined by a space, classes are sorted, a fifth of each is held out; ids are the tokenizer's."""
    path = write_csv(tmp_path / "news.csv", news())
    listed = list_texts("news", source(path))
    assert listed.classes == ("científico", "sport", "world")
    first = min(listed.examples, key=lambda e: e.line)
    assert (first.text, first.label, first.line) == ("Title 0 ball team 0", "sport", 2)
    assert listed.examples == tuple(hold_out(listed.examples, 0.2))
    task = read_texts("news", source(path, tokenizer=str(bert)))
    assert (len(task.pool), len(task.test), task.pool.num_classes) == (24, 6, 3)
    assert (task.pool.inputs.dtype, tuple(task.pool.inputs.shape)) == (torch.int32, (24, 7))
    assert task.transform.evaluation(task.pool.inputs) is task.pool.inputs
    for examples, part in ((task.pool, listed.training), (task.test, listed.test)):
        for ids, label, example in zip(examples.inputs.tolist(), examples.labels, part, strict=True):
            words = ["[CLS]", *example.text.lower().split(), "[SEP]"]
            assert [VOCABULARY[i] for i in ids] == words
            assert listed.classes[int(label)] == example.label


def test_padding_and_cutting(tmp_path: Path, bert: Path) -> None:
    """The longest text gives the length, shorter ones are padded, and none has more tokens than ``max_length``."""
    rows = news()
    rows[0] = ("king", "", "sport")
    rows[1] = ("atom " * 30, "cell", "sport")
    path = write_csv(tmp_path / "news.csv", rows)
    task = read_texts("news", source(path, tokenizer=str(bert)))
    both = torch.cat([task.pool.inputs, task.test.inputs])
    assert both.shape[1] == 16 == json.loads((bert / "config.json").read_text())["max_position_embeddings"]
    pad, king = VOCABULARY.index("[PAD]"), VOCABULARY.index("king")
    (short,) = (row for row in both.tolist() if row[1] == king)
    assert [VOCABULARY[i] for i in short[:3]] == ["[CLS]", "king", "[SEP]"]
    assert set(short[3:]) == {pad}
    cut = read_texts("news", source(path, tokenizer=str(bert), max_length=4))
    assert cut.pool.inputs.shape[1] == 4
    assert {VOCABULARY[i] for i in cut.pool.inputs[:, 3].tolist()} == {"[SEP]", "[PAD]"}


def test_the_hash_is_of_the_texts(tmp_path: Path, bert: Path) -> None:
    """Another tokenizer or length leaves the hash; a text, a label, a column or the split changes it."""
    other = write_bert(tmp_path / "other", vocabulary=[*VOCABULARY[:5], *reversed(VOCABULARY[5:])])
    path = write_csv(tmp_path / "news.csv", news())

    def fingerprint(**settings: object) -> str:
        return read_texts("news", source(path, **{"tokenizer": str(bert)} | settings)).fingerprint

    before = fingerprint()
    assert re.fullmatch("[0-9a-f]{16}", before)
    assert fingerprint() == fingerprint(tokenizer=str(other)) == fingerprint(max_length=4) == before
    assert len({before, fingerprint(text=("title",)), fingerprint(test_share=0.4)}) == 3
    rows = news()
    for changed in (("Title 0", "ball", "sport"), ("Title 0", "ball team 0", "world")):
        write_csv(path, [changed, *rows[1:]])
        assert fingerprint() != before


def test_columns_of_all_kinds(tmp_path: Path) -> None:
    """A byte order mark, quoted line breaks and commas, padded names and other columns are read; split is kept."""
    rows = [("id", "split", " class ", "title")]
    texts = [f'line\n"{i}", or\n犬' for i in range(18)]
    rows += [(str(i), ("train", "Test ")[i % 3 == 0], f"{'ab'[i % 2]}\u0301", text) for i, text in enumerate(texts)]
    with (tmp_path / "news.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows(rows)
    listed = list_texts("news", source(tmp_path / "news.csv", text=("title",)))
    assert listed.classes == ("b\u0301", "\u00e1")  # one form of each accent
    assert [e.text for e in listed.test] == texts[::3]
    entry = find_task("news", source(tmp_path / "news.csv", text=("title",)))
    sizes = entry.pool_size, entry.test_size, entry.num_classes, entry.smallest_class, entry.inputs
    assert sizes == (12, 6, 2, 6, "text")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"has no column title and description and class \(its first line is ''\): expected a first line"),
        ("title,class\nx,a\n", "has no column description .*'title,class'.* names the columns title, description, cl"),
        ("title,description,label\nx,y,a\n", "has no column class"),
        ("title;description;class\nx;y;a\n", "has no column title and description and class .*separated by commas"),
        ("title,title,description,class\n", "has the column title more than once"),
        ("title,description,class\n, ,a\nx,,b\n,,\n", "2 of 3 rows .* line 2: the text is empty; line 4: the text is"),
        ("title,description,class\nx,y, \n", "1 of 1 rows .* line 2: no label: correct or remove them"),
        ("title,description,class\nx,y\n", "line 2: no label"),
        ("title,description,class\nx,y,a,b\n", "line 2: more fields than columns"),
        ("title,description,class,split\nx,y,a,dev\n", "line 2: split 'dev', expected train or test"),
        ("title,description,class\n", "has no training texts: give texts of at least two classes"),
        ("title,description,class\n" + "x,y,a\n" * 9, "has one class, 'a': give texts of at least two classes"),
        ("title,description,class\n" + "x,y,a\n" * 9 + "x,y,b\n" * 5, "4 training texts of class 'b' in .*, with 1 mo"),
        (
            "title,description,class,split\n" + "x,y,a,train\nx,y,b,train\nx,y,a,test\n" * 5,
            "no test text of class 'b' in .*: add one, or leave the test set out",
        ),
        (
            "title,description,class,split\n" + "x,y,a,train\nx,y,b,train\nx,y,c,test\n" * 5,
            "the test set of .* has line 4, whose class 'c' has no training texts",
        ),
        ('title,description,class\n"x,y,a\n', r"cannot be read \(Error: unexpected end of data\): save it as CSV in"),
        (b"title,description,class\n\xff\xfe,y,a\n", r"cannot be read \(UnicodeDecodeError: .*\): save it as CSV in U"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, text: str | bytes, words: str) -> None:
    """A file with anything missing or unclear is refused in a line that names it, before a tokenizer is opened."""
    path = tmp_path / "news.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for call in (check_task, load_task):
        with pytest.raises(DataError) as raised:
            call("news", source=source(path, tokenizer="/none"))
        line = str(raised.value)
        assert line.startswith("news: ")
        assert str(path) in line
        assert line.isprintable()
        assert re.search(words, line)


def test_no_file(tmp_path: Path) -> None:
    """A path that leads to nothing, or to a folder, is refused."""
    with pytest.raises(DataError, match=r"news: there is no .*gone\.csv: correct the path, or bring the CSV file"):
        list_texts("news", source(tmp_path / "gone.csv"))
    with pytest.raises(DataError, match="is not a file: correct the path"):
        list_texts("news", source(tmp_path))


def test_sizes(tmp_path: Path, bert: Path) -> None:
    """N is split in proportion and refused above the pool or below 5 a class, as for the user's own images."""
    path = write_csv(tmp_path / "news.csv", news())
    task = load_task("news", source=source(path, tokenizer=str(bert)))
    assert len(task.split(18, seed=1, validation=True).train) == 15
    for n, words in {25: "larger than the pool of 24", 12: "leaves 4 examples of the smallest class"}.items():
        with pytest.raises(ValueError, match=words):
            task.split(n, seed=1, validation=False)
    with pytest.raises(ValueError, match="image_size = 32, but news has texts: leave it out"):
        load_task("news", image_size=32, source=source(path, tokenizer=str(bert)))


def no_vocabulary(folder: Path) -> dict[str, object]:
    (folder / "vocab.txt").unlink()
    return {}


def too_many(folder: Path) -> dict[str, object]:
    (folder / "vocab.txt").write_text("\n".join([*VOCABULARY, "more"]) + "\n")
    return {}


def no_padding(folder: Path) -> dict[str, object]:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": None}))
    return {}


def code_of_its_own(folder: Path) -> dict[str, object]:
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "evil.Config", "AutoTokenizer": ["evil.Tokenizer", None]}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "evil", "auto_map": auto}))
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    return {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: {"tokenizer": None}, "news: texts need the tokenizer of a network: give one"),
        (lambda folder: {"tokenizer": "./gone"}, "there is no folder .*gone: give a folder of a model, or its name"),
        (lambda folder: {"tokenizer": "no/such-model"}, "tokenizer of no/such-model .* not a folder here, perhaps"),
        (lambda folder: {"max_length": 17}, "max_length = 17 of .*: it takes at most 16 tokens: choose fewer"),
        (
            no_vocabulary,
            r"the tokenizer of .* cannot be read \(ValueError: no vocabulary\): give the folder of a model",
        ),
        (too_many, r"cannot be read \(ValueError: 73 tokens, the network has 72\)"),
        (no_padding, r"padding of .* is not known \(pad_token_id None in its config\.json, 0 in its tokenizer\)"),
        (code_of_its_own, "the tokenizer of .* cannot be read .*"),
    ],
)
def test_tokenizers_that_are_refused(tmp_path: Path, change: object, words: str) -> None:
    """A tokenizer that is missing, has no padding or has code of its own is refused in one line, and no code is run."""
    folder = write_bert(tmp_path / "bert")
    settings = change(folder)  # type: ignore[operator]
    path = write_csv(tmp_path / "news.csv", news())
    with pytest.raises(DataError, match=words) as raised:
        read_texts("news", source(path, **{"tokenizer": str(folder)} | settings))
    assert str(raised.value).isprintable()
    assert not (folder / "ran").exists()


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without transformers the line says which extra brings it."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(DataError, match=r"transformers, which is not installed: pip install 'deelbo\[text\]'"):
        load_tokenizer(str(tmp_path), None)


def test_a_source_survives_json(tmp_path: Path) -> None:
    """`source_from` makes the source of its fields, as `doctor` sends them to the nodes."""
    for own in (source(tmp_path, test_share=0.3), ImageSource("photos", test_share=0.1)):
        assert source_from(json.loads(json.dumps(asdict(own)))) == own


@pytest.mark.skipif(AG_NEWS is None, reason="shared/data is absent")
def test_ag_news(tmp_path: Path) -> None:
    """AG News' test split: four classes of 1,900 texts, of which a fifth is held out."""
    assert AG_NEWS is not None
    path = tmp_path / "news.csv"
    path.write_text("class,title,description\n" + AG_NEWS.read_text(encoding="utf-8"), encoding="utf-8")
    entry = find_task("news", source(path))
    assert (entry.pool_size, entry.test_size, entry.num_classes, entry.smallest_class) == (6080, 1520, 4, 1520)
    with pytest.raises(DataError, match=r"has no column title and description and class \(its first line is '3,Fears"):
        find_task("news", source(AG_NEWS))
