"""A planned launch on its way to an executor."""

from __future__ import annotations

from flame.orchestrator.plan import Launch
from flame.orchestrator.ticket import Part, Ticket


class Job:
    """A planned launch with its requests. `parts` are those that still take part, known when it begins: then it scores
    `candidates` and has room for `slots` of them, which are 0 for an encode.

    `seats` are the parts as they were planned. `device` is the place of the device that runs it. `batch` says that
    launches with interactive requests go first: it has none, nor does one that waits for it. `waits` counts the
    launches that must end before this one, of this plan and of earlier ones.
    """

    __slots__ = ("batch", "candidates", "dependents", "device", "launch", "number", "parts", "seats", "slots", "waits")

    def __init__(self, number: int, launch: Launch, tickets: list[Ticket], device: int = 0) -> None:
        self.number = number
        self.batch = False
        self.device = device
        self.launch = launch
        self.seats = [
            Part(ticket, piece.start, piece.stop, ticket.round)
            for ticket, piece in zip(tickets, launch.slices, strict=True)
        ]
        self.waits = 0
        self.dependents: list[Job] = []
        self.parts: list[Part] = []
        self.candidates = 0
        self.slots = 0

    def wait_for(self, other: Job) -> None:
        """Lets this launch begin only when `other`, which has not ended, has."""
        other.dependents.append(self)
        self.waits += 1

    def tickets(self) -> set[Ticket]:
        """The requests that were to take part when it was planned and have not been planned anew."""
        return {part.ticket for part in self.seats if part.ticket.round == part.round}

    def seat(self) -> None:
        """Fixes `parts`: the slices of requests that have no error. They are what the launch is counted by."""
        self.parts = [part for part in self.seats if part.counts]
        if self.launch.kind != "encode":
            profile = self.launch.profile
            self.candidates = sum([part.stop - part.start for part in self.parts])
            self.slots = profile.users * profile.candidates

    def requests(self) -> set[Ticket]:
        """The requests that take part, each once: two slices of one may share a launch."""
        return {part.ticket for part in self.parts}
