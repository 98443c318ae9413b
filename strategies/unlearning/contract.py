"""What a way to unlearn is: from which round of the old run the new one goes on, and for how many rounds without the forgotten."""

from typing import NamedTuple


class Way(NamedTuple):
    """A new run beside the old one, in which somebody is not there."""

    paper: str
    exact: bool  # what comes out is what had come out without them
    keeps: bool  # begins with what the old run has come to; else at the start, and nothing of the old run is read
    rounds: int = 0  # of a run that keeps: so many more

    @property
    def trains(self) -> bool:
        """Whether other users' examples are trained on once more, which spends."""
        return self.rounds > 0 or not self.keeps
