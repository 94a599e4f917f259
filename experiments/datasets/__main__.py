"""Lists the sets of data, and gets them.

python -m experiments.datasets
python -m experiments.datasets get mnist jsb
python -m experiments.datasets get all --data-dir data
"""

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from experiments.command.messages import complain, one_line
from experiments.datasets._download import get
from experiments.datasets._files import MissingData, data_folder
from experiments.datasets._sources import DataSet
from experiments.datasets._table import SETS, check, state


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(complain("datasets", message))


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 2, and a line on stderr for each set that could not be got."""
    given = _parser().parse_args(arguments)
    if given.command == "get":
        return _get_all(given.names, given.data_dir)
    _list_all(given.data_dir)
    return 0


def _parser() -> argparse.ArgumentParser:
    folder = _Parser(add_help=False)
    folder.add_argument(
        "--data-dir", type=Path, default=argparse.SUPPRESS, help="by default JAXRNN_DATA, else the user's cache"
    )
    parser = _Parser(prog="python -m experiments.datasets", description="Lists the sets of data.", parents=[folder])
    parser.set_defaults(data_dir=None)
    commands = parser.add_subparsers(dest="command", parser_class=_Parser)
    getting = commands.add_parser("get", help="downloads and verifies sets", parents=[folder])
    getting.add_argument("names", nargs="+", metavar="NAME", help="of a set, or all")
    return parser


def _list_all(data_dir: Path | None) -> None:
    print(f"{'set':<18}{'state':<10}{'download':<10}{'licence':<27}what")
    for source in SETS.values():
        print(f"{source.name:<18}{state(source, data_dir):<10}{source.size:<10}{source.licence:<27}{source.about}")
    print(f"\nfolder: {data_folder(data_dir)}\nget one with: python -m experiments.datasets get NAME")


def _get_all(names: Sequence[str], data_dir: Path | None) -> int:
    for name in names:
        if name not in SETS and name != "all":
            near = difflib.get_close_matches(name.lower(), SETS, 1)
            hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(SETS)}"
            return complain("datasets", f"there is no set {one_line(repr(name), 80)}; {hint}")
    chosen = SETS if "all" in names else dict.fromkeys(names)
    return 2 if [name for name in chosen if not _got(SETS[name], data_dir)] else 0


def _got(source: DataSet, data_dir: Path | None) -> bool:
    """Whether the set is here in the end; if not, a line on stderr says why."""
    try:
        if source.ways and state(source, data_dir) != "here":
            folder = get(source, data_dir, lambda line: print(line, file=sys.stderr))
            check(source, data_dir)
            print(f"{source.name}: in {folder}, verified")
        else:
            check(source, data_dir)
            print(f"{source.name}: here already, verified")
    except (MissingData, ValueError, OSError) as error:
        complain("datasets", error)
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
