"""Tests of downloading, with a function in place of the server."""

import gzip
import hashlib
import io
import re
import tarfile
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import pytest
from torchvision import datasets

from deelbo.data import download_task
from deelbo.data.integrity import CIFAR10, FASHION_MNIST, FLOWERS, IDX_FILES, PET
from deelbo.data.torchvision_datasets import check, download


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def packed(root: Path, *names: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in names:
            tar.add(root / name, arcname=Path(name).name)
    return buffer.getvalue()


class Answer(io.BytesIO):
    """The response of urlopen."""

    url: str | None = None

    @property
    def length(self) -> int:
        return len(self.getvalue())


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, data_root: Path) -> tuple[dict[str, bytes], list[str]]:
    """Serve the small sets as the official ones; return the files by name, and the list of requests."""
    batches = data_root / "cifar-10-batches-py"
    flowers = data_root / "flowers-102"
    files = {
        "cifar-10-python.tar.gz": packed(data_root, "cifar-10-batches-py"),
        "images.tar.gz": packed(data_root / "oxford-iiit-pet", "images"),
        "annotations.tar.gz": packed(data_root / "oxford-iiit-pet", "annotations"),
        "102flowers.tgz": packed(flowers, "jpg"),
        "imagelabels.mat": (flowers / "imagelabels.mat").read_bytes(),
        "setid.mat": (flowers / "setid.mat").read_bytes(),
    }
    fashion = [(data_root / "FashionMNIST" / "raw" / name).read_bytes() for name in IDX_FILES]
    files |= {f"{name}.gz": gzip.compress(content) for name, content in zip(IDX_FILES, fashion, strict=True)}
    asked: list[str] = []

    def answer(request: urllib.request.Request) -> Answer:
        name = request.full_url.rpartition("/")[2]
        if request.headers.get("Method") != "HEAD":
            asked.append(name)
        return Answer(files[name])

    def summed(name: str) -> list[str]:
        return [name, md5((batches / name).read_bytes())]

    monkeypatch.setattr("urllib.request.urlopen", answer)
    cifar10 = datasets.CIFAR10
    monkeypatch.setattr(cifar10, "tgz_md5", md5(files["cifar-10-python.tar.gz"]))
    monkeypatch.setattr(cifar10, "train_list", [summed(f"data_batch_{i}") for i in range(1, 6)])
    monkeypatch.setattr(cifar10, "test_list", [summed("test_batch")])
    monkeypatch.setattr(cifar10, "meta", cifar10.meta | {"md5": summed("batches.meta")[1]})
    resources = [(name, md5(files[name])) for name, _ in datasets.FashionMNIST.resources]
    monkeypatch.setattr(datasets.FashionMNIST, "resources", resources)
    monkeypatch.setattr("deelbo.data.torchvision_datasets.FASHION_MNIST_MD5", [md5(content) for content in fashion])
    resources = [(url, md5(files[url.rpartition("/")[2]])) for url, _ in datasets.OxfordIIITPet._RESOURCES]
    monkeypatch.setattr(datasets.OxfordIIITPet, "_RESOURCES", resources)
    own = {key: (name, md5(files[name])) for key, (name, _) in datasets.Flowers102._file_dict.items()}
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", own)
    return files, asked


SMALL = {
    "CIFAR10": replace(CIFAR10, training_images=400, test_images=60),
    "FASHION_MNIST": replace(FASHION_MNIST, training_images=200, test_images=30),
    "PET": replace(PET, training_images=441, test_images=74),
    "FLOWERS": replace(FLOWERS, training_images=510, test_images=102),
}
FILES = {
    "CIFAR10": ["cifar-10-python.tar.gz"],
    "FASHION_MNIST": [f"{name}.gz" for name in IDX_FILES],
    "PET": ["images.tar.gz", "annotations.tar.gz"],
    "FLOWERS": ["102flowers.tgz", "imagelabels.mat", "setid.mat"],
}
DAMAGE: dict[str, Callable[[Path], object]] = {
    "CIFAR10": lambda folder: (folder / "batches.meta").unlink(),
    "FASHION_MNIST": lambda folder: (folder / "raw" / IDX_FILES[2]).write_bytes(b"cut"),
    "PET": lambda folder: next((folder / "images").iterdir()).unlink(),
    "FLOWERS": lambda folder: next((folder / "jpg").iterdir()).write_bytes(b""),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_download(served: tuple[dict[str, bytes], list[str]], tmp_path: Path, name: str) -> None:
    """Missing files are downloaded and unpacked once; complete ones are not requested again."""
    folder, root = SMALL[name], tmp_path / "new" / "root"
    for _ in range(2):
        assert download(folder, root) == root / folder.folder
        assert served[1] == FILES[name]
        check(folder, root, verify=True)


@pytest.mark.parametrize("name", SMALL)
def test_an_incomplete_folder(served: tuple[dict[str, bytes], list[str]], tmp_path: Path, name: str) -> None:
    """A folder that lacks a file is completed from the archive beside it, without a request."""
    folder = SMALL[name]
    download(folder, tmp_path)
    served[1].clear()
    DAMAGE[name](tmp_path / folder.folder)
    download(folder, tmp_path)
    assert served[1] == []
    check(folder, tmp_path, verify=True)


def test_a_truncated_archive(served: tuple[dict[str, bytes], list[str]], tmp_path: Path) -> None:
    """A truncated archive of a broken download is downloaded again."""
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(served[0]["cifar-10-python.tar.gz"][:1000])
    download(SMALL["CIFAR10"], tmp_path)
    assert served[1] == ["cifar-10-python.tar.gz"]


def test_an_archive_with_another_checksum(served: tuple[dict[str, bytes], list[str]], tmp_path: Path) -> None:
    """An archive with another checksum is refused and not unpacked."""
    served[0]["cifar-10-python.tar.gz"] += b"\0"
    with pytest.raises(ValueError, match=r"^CIFAR-10 could not be downloaded to \S+ \(RuntimeError: [^\n]+$"):
        download(SMALL["CIFAR10"], tmp_path)
    assert not (tmp_path / "cifar-10-batches-py").exists()


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("file", ["test_batch", "batches.meta", "data_batch_5"])
def test_every_checksum_is_compared(tmp_path: Path, file: str) -> None:
    """One more byte in any of CIFAR-10's files makes it another version."""
    path = download(SMALL["CIFAR10"], tmp_path) / file
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ValueError, match=f"another version: {re.escape(str(path))} has MD5 "):
        check(SMALL["CIFAR10"], tmp_path, verify=True)


@pytest.mark.parametrize("name", ["CIFAR-10", "Fashion-MNIST", "Oxford-IIIT_Pet", "Flowers-102"])
@pytest.mark.parametrize(
    "error", [URLError("Name or service\nnot known"), TimeoutError("timed out"), OSError(28, "full")]
)
def test_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, error: Exception) -> None:
    """An error of the network or the disk becomes one line that says what to do instead."""

    def fail(*given: object, **named: object) -> None:
        raise error

    monkeypatch.setattr("urllib.request.urlopen", fail)
    # torchvision tries the mirrors of Fashion-MNIST and raises what their errors were
    kind = "RuntimeError" if (name, type(error)) == ("Fashion-MNIST", URLError) else type(error).__name__
    with pytest.raises(ValueError, match=rf"^{name} could not be downloaded to \S+ \({kind}: ") as raised:
        download_task(name, tmp_path)
    said = str(raised.value)
    assert "\n" not in said
    assert "run it where there is a network, or bring" in said
    assert said.endswith("set `data` / $DEELBO_DATA to the folder that holds it")


def test_only_downloading_uses_the_network(monkeypatch: pytest.MonkeyPatch, data_root: Path, tmp_path: Path) -> None:
    """Loading and checking open no connection, whether the data exist or not."""
    from deelbo.data import check_task, load_task

    def fail(*given: object, **named: object) -> None:
        pytest.fail("the network was touched")

    monkeypatch.setattr("socket.socket.connect", fail)
    monkeypatch.setattr("socket.getaddrinfo", fail)
    monkeypatch.setattr("urllib.request.urlopen", fail)
    for name in ("CIFAR-10", "Fashion-MNIST", "Oxford-IIIT_Pet", "Flowers-102"):
        load_task(name, data_root, image_size=24, verify=False)
        with pytest.raises(ValueError, match="was not found"):
            check_task(name, tmp_path)
    with pytest.raises(pytest.fail.Exception, match="touched"):
        download_task("CIFAR-10", tmp_path)
