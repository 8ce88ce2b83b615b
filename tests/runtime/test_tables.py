"""Tables for terminals, as literals."""

from restnet_runtime.routes import Route
from restnet_runtime.tables import routes_table, table


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert table(("name", "n"), [("a", "1"), ("longer", "1000")]) == "name       n\n------  ----\na          1\nlonger  1000"


def test_empty_cells_leave_no_blanks_at_the_end() -> None:
    assert table(("a", "flag"), [("x", "")]) == "a  flag\n-  ----\nx"


def test_no_rows() -> None:
    assert table(("a", "b"), []) == "a  b\n-  -"


def test_routes_by_cost(family_bundle) -> None:
    assert routes_table(list(reversed(family_bundle.routes))) == (
        "route                        cost  params  weights  accuracy  front\n"
        "---------------------  ----------  ------  -------  --------  -----\n"
        "small                  11.5 KMACs     203      0 B     80.0%    yes\n"
        "small[0-1]>large[3-4]   350 KMACs   5,591  20.7 kB     85.0%    yes\n"
        "small[0-1]>large[2-4]   681 KMACs  10,799  41.5 kB     90.0%    yes\n"
        "large                  1.01 MMACs  15,939  62.2 kB     95.0%    yes"
    )


def test_a_route_without_a_score() -> None:
    route = Route("a", ("s",), ("fp32",), 2_000_000_000, 5_000_000, 20_000_000, None, False)
    assert routes_table([route]).splitlines()[2] == "a      2 GMACs  5,000,000    20 MB         ?"


def test_the_precision_is_shown_where_there_is_more_than_one(family_bundle, int8_bundle) -> None:
    assert "precision" not in routes_table(family_bundle.routes)
    lines = routes_table(int8_bundle.routes).splitlines()
    assert lines[0].split() == ["route", "precision", "cost", "params", "weights", "accuracy", "front"]
    assert {tuple(line.split()[:2]) for line in lines[2:]} == {(route.name, route.precision) for route in int8_bundle.routes}
