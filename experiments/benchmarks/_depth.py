"""Counts the steps that a compiled program makes one after another in its loops."""

import re


def computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation of a compiled program by its name, and the name of the entry."""
    found, entry = {}, ""
    for head, body in re.findall(r"^((?:ENTRY )?%?[\w.\-]+) [^\n]*\{\n(.*?)^\}", text, re.M | re.S):
        name = head.removeprefix("ENTRY ").lstrip("%")
        found[name] = body.splitlines()
        entry = name if head.startswith("ENTRY") else entry
    return found, entry


def depth(text: str, iterations: int = 0) -> int:
    """How many steps a compiled program makes one after another in loops: trips times what they hold.

    A loop whose trips are not known is an iteration of Newton's method. The branch of a condition that holds the
    longer loop is that of a window which did not converge.
    """
    found, entry = computations(text)

    def of(name: str) -> int:
        total = 0
        for line in found.get(name, ()):
            if " while(" in line:
                trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
                body = re.search(r"body=%?([\w.\-]+)", line)
                inner = of(body[1]) if body else 0
                total += (int(trips[1]) if trips else iterations) * max(1, inner)
            elif " conditional(" in line:
                branches = re.search(r"branch_computations=\{(.*?)\}", line)
                names = (
                    branches[1].split(", ") if branches else re.findall(r"(?:true|false)_computation=(\S+?)[,\s]", line)
                )
                total += min(of(each.lstrip("%")) for each in names)
            elif called := re.search(r"(?:calls|to_apply)=%?([\w.\-]+)", line):
                total += of(called[1])
        return total

    return of(entry)
