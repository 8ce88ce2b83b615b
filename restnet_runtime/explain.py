"""Explain: for every route the limit that rules it out under a budget, or what it is beside the chosen one."""

from collections.abc import Sequence
from dataclasses import dataclass

from restnet_runtime.ladder import Candidate, Ladder, by_cost
from restnet_runtime.limits import Limits
from restnet_runtime.policy import DEFAULTS, Decision, PolicySettings
from restnet_runtime.reading import Reading
from restnet_runtime.tables import table
from restnet_runtime.units import format_bytes, format_macs, format_ms

CHOSEN, FITS, OVER = "chosen", "fits", "ruled out"


@dataclass(frozen=True)
class Verdict:
    """What became of one route.

    verdict:  `chosen`, `fits` (and is less accurate than the chosen one, or as accurate and dearer), `ruled out`
    limits:   those that it does not keep: memory, latency, macs, accuracy
    why:      the same in words, with figures
    """

    route: str
    macs: int
    accuracy: float | None
    latency_ms: float | None
    memory_bytes: int | None
    verdict: str
    limits: tuple[str, ...]
    why: str


def explain(
    candidates: Sequence[Candidate], decision: Decision, reading: Reading | None = None, settings: PolicySettings = DEFAULTS
) -> list[Verdict]:
    """Every candidate under the limits of a decision, cheapest first. reading: what the decision was made from, besides."""
    known = reading or Reading()
    limits = Limits(known, decision.limits, settings.margin, settings.memory_reserve_bytes, settings.servers)
    verdicts = []
    for rung in sorted(Ladder(candidates), key=by_cost):
        broken = limits.broken(rung)
        chosen = rung.name == decision.route
        why = "; ".join(text for _, text in broken)
        if not broken:
            why = "the most accurate that fits" if chosen else "fits, less accurate"
        elif chosen:
            why = f"serves although {why}"
        verdicts.append(
            Verdict(
                rung.name,
                rung.macs,
                rung.accuracy,
                rung.latency_ms if rung.profiled else None,
                int(rung.memory_bytes) if rung.profiled else None,
                CHOSEN if chosen else OVER if broken else FITS,
                tuple(kind for kind, _ in broken),
                why,
            )
        )
    return verdicts


def render(verdicts: Sequence[Verdict]) -> str:
    """As a table for a terminal."""
    return table(
        ("route", "cost", "accuracy", "latency", "memory", "verdict", "why"),
        (
            (
                one.route,
                format_macs(one.macs),
                "?" if one.accuracy is None else f"{one.accuracy:.1%}",
                "?" if one.latency_ms is None else format_ms(one.latency_ms),
                "?" if one.memory_bytes is None else format_bytes(one.memory_bytes),
                one.verdict,
                one.why,
            )
            for one in verdicts
        ),
    )
