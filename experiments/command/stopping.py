"""What Ctrl-C does: trainings end at their last evaluation, which is kept, and the script with what they reached."""

import threading
from collections.abc import Callable


class Stopped(Exception):
    """The user has stopped the script."""


class Stop:
    """Whether the user has asked the script to stop, and what is kept then."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forgets the script before, if there was one in this process."""
        self.asked = threading.Event()
        self.keepers: list[Callable[[], bool]] = []
        self.kept = False

    def on_stop(self, keep: Callable[[], bool]) -> None:
        """Calls `keep` when the script is stopped; it returns whether there is something to go on from."""
        self.keepers.append(keep)

    def keep(self) -> None:
        """Keeps what all trainings reached, once they stand still."""
        found = [keep() for keep in self.keepers]  # all of them
        self.kept = any(found)


STOP = Stop()  # of this process, which runs one script
