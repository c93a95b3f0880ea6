"""Pace and memory of a large run by quarter."""

from __future__ import annotations

import pytest

from bench.scale import Sample, print_quarters


def test_quarters_show_pace_and_peak_memory(capsys: pytest.CaptureFixture[str]) -> None:
    records = [Sample(5.0, 0, 900.0, 90.0), Sample(10.0, 1, 100.0, 50.0), Sample(12.0, 25, 300.0, 50.0)]
    records += [Sample(14.0, 50, 200.0, 60.0), Sample(24.0, 75, 200.0, 60.0), Sample(25.0, 100, 250.0, 70.0)]
    print_quarters(records, 100)
    assert capsys.readouterr().out.splitlines() == [
        "  quarter 1:  12.0 pairs/s, client   300 MB, server    50 MB",
        "  quarter 2:  12.5 pairs/s, client   300 MB, server    60 MB",
        "  quarter 3:   2.5 pairs/s, client   200 MB, server    60 MB",
        "  quarter 4:  25.0 pairs/s, client   250 MB, server    70 MB",
    ]
