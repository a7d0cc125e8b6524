"""A planned launch on its way to an executor."""

from __future__ import annotations

from flame.orchestrator.plan import Launch
from flame.orchestrator.ticket import Part, Ticket


class Job:
    """A planned launch with its requests. `parts` are those that still take part, known when it begins: then it scores
    `candidates` and has room for `slots` of them, which are 0 for an encode.

    `seats` names for each slice its ticket, and the ticket's round of planning: a ticket that was planned anew since
    has no part in it. `device` is the place of the device that runs it. `waits` counts the launches that must end
    before this one, of this plan and of earlier ones.
    """

    __slots__ = ("candidates", "dependents", "device", "launch", "number", "parts", "seats", "slots", "waits")

    def __init__(self, number: int, launch: Launch, tickets: list[Ticket], device: int = 0) -> None:
        self.number = number
        self.device = device
        self.launch = launch
        self.seats = [(ticket, ticket.round) for ticket in tickets]
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
        return {ticket for ticket, planned in self.seats if ticket.round == planned}

    def seat(self) -> None:
        """Fixes `parts`: the slices of requests that have no error. They are what the launch is counted by."""
        self.parts = [
            Part(ticket, piece.start, piece.stop)
            for (ticket, planned), piece in zip(self.seats, self.launch.slices, strict=True)
            if not ticket.error and ticket.round == planned
        ]
        if self.launch.kind != "encode":
            profile = self.launch.profile
            self.candidates = sum([stop - start for _, start, stop in self.parts])
            self.slots = profile.users * profile.candidates

    def requests(self) -> set[Ticket]:
        """The requests that take part, each once: two slices of one may share a launch."""
        return {part.ticket for part in self.parts}
