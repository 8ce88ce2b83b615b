"""Sharing: how much of one memory limit each of several models may take. Pure: offers and a limit in, shares out.

Rules (docs/decisions/0019-several-bundles.md)
  1. Each model has its cheapest route first, in the order of the models. One whose cheapest does not fit beside those before it rests:
     nothing of it is loaded. The first never rests.
  2. What is left goes, step by step, to the better route of any model that wins most per byte: accuracy x the model's share of requests.
  3. What no better route can use is divided evenly, for further routes to be loaded beside those that serve.

So the shares never exceed the limit as long as the first model's cheapest route fits; no model could have a better route for what is left
over; and what is won is at most one step of one model below the best division there is.

What is not held already has to fit into a little less (`Room.entry_bytes`), or it would come and go with the noise of what is available;
and what is held leaves a little free (`Room.slack_bytes`), because what the process takes without routes moves too.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WORTH = 0.05
"""Of all that accuracies differ by: another division has to win so much more before anything is taken from a model for it."""


@dataclass(frozen=True)
class Option:
    """A route that a model could be served by. need_bytes: what the process takes for it beyond what it takes without any route."""

    route: str
    need_bytes: int
    accuracy: float


@dataclass(frozen=True)
class Offer:
    """What one model could use.

    options:     its cheapest route first, then those that would be better, in any order
    weight:      its share of the requests, above 0
    most_bytes:  all its routes together
    held:        the route that it has a share for already, `None` where it has none
    """

    options: tuple[Option, ...]
    weight: float
    most_bytes: int
    held: str | None = None

    def holds(self) -> Option | None:
        """The option of that route; `None` where there is none any more."""
        return next((option for option in self.options if option.route == self.held), None)


@dataclass(frozen=True)
class Room:
    """What all routes of all models may take together.

    entry_bytes:  what they may where one is among them that its model does not hold yet
    slack_bytes:  kept free of those that models are given a share for
    """

    all_bytes: float
    entry_bytes: float
    slack_bytes: float = 0.0

    @property
    def held_bytes(self) -> float:
        return self.all_bytes - self.slack_bytes


@dataclass(frozen=True)
class Share:
    """What one model may take. option: the route that it is for, `None` for a model that rests; reserved_bytes: with further ones."""

    option: Option | None
    reserved_bytes: int = 0


RESTS = Share(None)


def thin(options: Iterable[Option]) -> tuple[Option, ...]:
    """The first, and of the others those that no smaller one is as accurate as."""
    first, *others = options
    kept: list[Option] = []
    for option in sorted(others, key=lambda option: (option.need_bytes, -option.accuracy)):
        if not kept or option.accuracy > kept[-1].accuracy:
            kept.append(option)
    return first, *kept


def divide(offers: Sequence[Offer], room: Room) -> list[Share]:
    """A share for each offer, in their order."""
    chosen: list[Option | None] = []
    total = 0
    for place, offer in enumerate(offers):
        first = offer.options[0]
        limit = room.held_bytes if offer.held is not None else room.entry_bytes
        fits = place == 0 or total + first.need_bytes <= limit
        chosen.append(first if fits else None)
        total += first.need_bytes if fits else 0
    return _reserve(offers, _upgrade(offers, chosen, room), room)


def hold(offers: Sequence[Offer], room: Room) -> list[Share] | None:
    """The same division where nothing is taken from any model: as held, then better. `None` where that does not fit any more."""
    chosen: list[Option | None] = [offer.holds() for offer in offers]
    gone = any(option is None and offer.held is not None for option, offer in zip(chosen, offers, strict=True))
    if gone or chosen[0] is None or sum(option.need_bytes for option in chosen if option is not None) > room.held_bytes:
        return None
    return _reserve(offers, _upgrade(offers, chosen, room), room)


def prefer(offers: Sequence[Offer], fresh: Sequence[Share], kept: Sequence[Share]) -> tuple[bool, bool]:
    """(at once, soon): is a fresh division to take the place of that which is kept? At once where a model rests without need."""
    rests = [share.option is None for share in kept]
    wakes = any(before and now.option is not None for before, now in zip(rests, fresh, strict=True))
    spread = sum(offer.weight * _spread(offer.options) for offer in offers)
    return wakes, _worth(offers, fresh) - _worth(offers, kept) > WORTH * spread


def _worth(offers: Sequence[Offer], shares: Sequence[Share]) -> float:
    return sum(offer.weight * share.option.accuracy for offer, share in zip(offers, shares, strict=True) if share.option is not None)


def _spread(options: Sequence[Option]) -> float:
    accuracies = [option.accuracy for option in options]
    return max(accuracies) - min(accuracies)


def _upgrade(offers: Sequence[Offer], chosen: list[Option | None], room: Room) -> list[Option | None]:
    """Better routes, that which wins most per byte first, until none fits. Models that rest stay so."""
    total = sum(option.need_bytes for option in chosen if option is not None)
    held = [offer.holds() for offer in offers]
    while True:
        best: tuple[float, float, int, Option] | None = None
        for place, (offer, now) in enumerate(zip(offers, chosen, strict=True)):
            for option in offer.options if now is not None else ():
                assert now is not None
                gain, more = offer.weight * (option.accuracy - now.accuracy), option.need_bytes - now.need_bytes
                had = held[place]
                limit = room.held_bytes if had is not None and option.need_bytes <= had.need_bytes else room.entry_bytes
                if gain > 0 and (more <= 0 or total + more <= limit):
                    step = (math.inf if more <= 0 else gain / more, gain, -place, option)  # of equals the first model
                    best = step if best is None or step[:3] > best[:3] else best
        if best is None:
            return chosen
        place, option = -best[2], best[3]
        before = chosen[place]
        total += option.need_bytes - (0 if before is None else before.need_bytes)
        chosen[place] = option


def _reserve(offers: Sequence[Offer], chosen: Sequence[Option | None], room: Room) -> list[Share]:
    """What is left, evenly, up to what each model has a use for, its part of the slack included."""
    reserved = [0 if option is None else option.need_bytes for option in chosen]
    left = max(0, math.floor(min(room.all_bytes, 2**62)) - sum(reserved))
    slack = math.ceil(room.slack_bytes / len(offers))
    wishes = {place: max(0, offers[place].most_bytes - reserved[place]) + slack for place, one in enumerate(chosen) if one is not None}
    for at, (place, wish) in enumerate(sorted(wishes.items(), key=lambda item: item[1])):
        given = min(left // (len(wishes) - at), wish)
        reserved[place] += given
        left -= given
    return [Share(option, one) if option is not None else RESTS for option, one in zip(chosen, reserved, strict=True)]
