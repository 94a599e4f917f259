"""Members of archives, read by their exact names into memory; nothing is extracted to a path that an archive names."""

import functools
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

AR_MAGIC = b"!<arch>\n"
AR_HEADER = 60  # bytes: 16 of the name, 32 of other things, 10 of the size, 2 of an end mark
# What the libraries raise for content that is no archive: each of these was met with, or is documented.
DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError),
    *(KeyError, OSError, RuntimeError, TypeError, ValueError),
)

Reader = Callable[[Path], dict[str, bytes]]
MembersReader = Callable[[Path, Mapping[str, str]], dict[str, bytes]]


def _of_content(read: Callable[[bytes, Mapping[str, str]], dict[str, bytes]]) -> MembersReader:
    """Reads the file, and turns all that can be wrong with its content into one error."""

    @functools.wraps(read)
    def wrapped(path: Path, members: Mapping[str, str]) -> dict[str, bytes]:
        content = path.read_bytes()
        try:
            return read(content, members)
        except DAMAGE as error:
            raise ValueError(f"damaged archive: {error}") from error

    return wrapped


@_of_content
def zip_members(content: bytes, members: Mapping[str, str]) -> dict[str, bytes]:
    """The contents of `{name: member}` in a zip file, such as a wheel, by name."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(member) for name, member in members.items()}


@_of_content
def tar_members(content: bytes, members: Mapping[str, str]) -> dict[str, bytes]:
    """The contents of `{name: member}` in a tar file, compressed or not, by name."""
    return _members_of_tar(content, members)


@_of_content
def deb_members(content: bytes, members: Mapping[str, str]) -> dict[str, bytes]:
    """The contents of `{name: member}` in a Debian package, by name."""
    if not content.startswith(AR_MAGIC):
        raise ValueError("not a Debian package")
    place = len(AR_MAGIC)
    while place + AR_HEADER <= len(content):
        header = content[place : place + AR_HEADER]
        name, size = header[:16].decode("ascii", "replace").strip().rstrip("/"), int(header[48:58])
        place += AR_HEADER
        if name in ("data.tar", "data.tar.xz", "data.tar.gz"):
            return _members_of_tar(content[place : place + size], members)
        place += size + size % 2
    raise ValueError("no data.tar, data.tar.xz or data.tar.gz in it")


def _members_of_tar(content: bytes, members: Mapping[str, str]) -> dict[str, bytes]:
    """In one pass, since a compressed file is slow to go back in."""
    wanted = {member: name for name, member in members.items()}
    found = {}
    with tarfile.open(fileobj=io.BytesIO(content), mode="r|*") as archive:
        for entry in archive:
            if entry.name in wanted and entry.isreg():
                file = archive.extractfile(entry)
                assert file is not None  # since it is regular
                found[wanted[entry.name]] = file.read()
                if len(found) == len(wanted):
                    return found
    raise ValueError(f"no {next(member for member, name in wanted.items() if name not in found)} in it")


def members_of(read: MembersReader, members: Mapping[str, str]) -> Reader:
    """A reader of those members."""
    return lambda path: read(path, members)
