"""How fast an arm trains: tokens and seconds since the last logged step, and over a session."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Pace"]


@dataclass
class Pace:
    """Tokens and seconds since the last logged step; steps and seconds of this session."""

    tokens: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    """Those of ``seconds`` that went by before the batch was there."""
    session_steps: int = 0
    session_seconds: float = 0.0

    def add(self, tokens: int, seconds: float, waited: float, *, typical: bool) -> None:
        """Count a step; one that is not ``typical``, as it compiled, says nothing of the rest."""
        self.tokens += tokens
        self.seconds += seconds
        self.waited += waited
        if typical:
            self.session_steps += 1
            self.session_seconds += seconds

    @property
    def tokens_per_second(self) -> float:
        """Since the last logged step."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def data_wait(self) -> float:
        """The share of those seconds that was waited for data."""
        return self.waited / self.seconds if self.seconds else 0.0

    def log(self) -> None:
        """Begin to count anew."""
        self.tokens, self.seconds, self.waited = 0, 0.0, 0.0

    def seconds_for(self, steps: int) -> float:
        """What so many steps will take."""
        return steps * self.session_seconds / max(1, self.session_steps)
