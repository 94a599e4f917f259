"""Small data sets for tests: files, archives, and their rows in the table of sets."""

import gzip
import hashlib
import io
import lzma
import tarfile
import zipfile
from pathlib import Path

from experiments.datasets._sources import DataSet, File


def file_of(name, content):
    return File(name, hashlib.sha256(content).hexdigest())


def set_of(contents, *ways, name="small"):
    """The row of the table for small files."""
    return DataSet(name, "made up", "none", "0 MB", tuple(file_of(*item) for item in contents.items()), ways)


def write(folder: Path, contents: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def tar_of(contents, mode="w:gz"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def zip_of(contents):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def deb_of(contents, name="data.tar.xz"):
    def entry(name, content):
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        return header + content + b"\n" * (len(content) % 2)

    data = lzma.compress(tar_of(contents, "w:"))
    return b"!<arch>\n" + entry("debian-binary", b"2.0\n") + entry("control.tar.xz", b"odd") + entry(name, data)


CONTENTS = {"a.txt": b"alpha\n", "b.txt": b"beta\n"}
GZIPPED = gzip.compress(CONTENTS["b.txt"])
