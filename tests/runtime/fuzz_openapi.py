"""Requests that schemathesis makes of our own OpenAPI description, such as fit it and such as do not, against a real server."""

from collections.abc import Callable, Iterable
from typing import Any

import httpx
import hypothesis
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CheckFunction
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from .fuzz_targets import OURS, Tally

CHECKS: tuple[CheckFunction, ...] = (content_type_conformance, response_schema_conformance, status_code_conformance)


def _attempts(strategy: Any, examples: int, seed: int, tally: Tally) -> Callable[[], None]:
    @hypothesis.seed(seed)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )
    @given(case=strategy)
    def attempt(case: Any) -> None:
        response = case.call()
        tally.tried += 1
        tally.statuses[response.status_code] += 1
        sent = repr(case.as_transport_kwargs())[:2000].encode()
        if response.status_code in OURS:
            tally.faults.append((f"{case.method} {case.path}: {response.status_code} {response.text[:200]}", sent))
            return
        try:
            case.validate_response(response, checks=list(CHECKS))
        except Exception as error:
            tally.faults.append((f"{case.method} {case.path}: {str(error)[:600]}", sent))

    return attempt


def fuzz_openapi(url: str, examples: int, seed: int = 0, modes: Iterable[GenerationMode] = tuple(GenerationMode)) -> dict[str, Tally]:
    """So many requests of each kind for each operation; by operation what came of it. What is endless (/events) is left out."""
    schema = schemathesis.openapi.from_dict(httpx.get(f"{url}/openapi.json", trust_env=False).json())
    schema.config.update(base_url=url)
    tallies: dict[str, Tally] = {}
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path == "/events":
            continue
        tally = tallies.setdefault(operation.label, Tally())
        for mode in modes:
            try:
                strategy = operation.as_strategy(generation_mode=mode)
            except Exception as error:
                raise AssertionError(f"{operation.label}: {error}") from error

            attempt = _attempts(strategy, examples, seed, tally)
            try:
                attempt()
            except Exception as error:
                if "Unsatisfiable" not in type(error).__name__:  # nothing can be wrong about a path without parameters
                    raise
    return tallies
