"""The claims of fmdiff_helpers.reports about tables of measures. (`test_cli.py` tries what the command prints.)"""

from fmdiff_helpers.reports import measure_table


def test_a_table_has_a_line_for_each_row_and_a_column_for_each_head():
    rows = {"one": {"fd": (1.23456, 0.1), "recall": (0.5, 0.0)}, "another": {"fd": (12.0, 0.25), "kd": (9, 9)}}
    head, one, another = measure_table(rows, {"fd": "FD", "recall": "recall"}).splitlines()
    assert head.split() == ["FD", "recall"]
    assert one.split() == ["one", "1.235", "±", "0.100", "0.500"]  # no spread where it is 0
    assert another.split() == ["another", "12.000", "±", "0.250"]  # nothing where a measure is missing
    ends = [line.index(text) + len(text) for line, text in ((head, "FD"), (one, "0.100"), (another, "0.250"))]
    assert len(set(ends)) == 1


def test_long_heads_do_not_touch():
    table = measure_table(
        {"one": {"a": (1.0, 0.1), "b": (2.0, 0.1)}}, {"a": "a head that is long", "b": "another long head"}
    )
    assert "long  " in table.splitlines()[0]
