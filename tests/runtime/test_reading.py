"""A reading: a copy with some fields changed."""

from dataclasses import replace

import pytest

from restnet_runtime.reading import Reading


def test_updated_changes_what_is_named_and_nothing_else() -> None:
    before = Reading(cpu_percent=10.0, slowdown=1.5)
    after = before.updated(slowdown=2.0, tail=1.1)
    assert after == replace(before, slowdown=2.0, tail=1.1)
    assert before == Reading(cpu_percent=10.0, slowdown=1.5), "the first one stays"


def test_updated_refuses_a_field_that_there_is_not() -> None:
    with pytest.raises(TypeError, match="a reading has no slowness"):
        Reading().updated(slowness=2.0)
