"""What holds for every test: inside the lab none is skipped, for the lab has all they need."""

import os
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

# No test fails for being slow: machines that run them have other work to do.
settings.register_profile("tunsec", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tunsec")

IN_LAB = "TUNSEC_IN_LAB"  # set by the lab guest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skip is a failure there."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        _refuse_in_lab(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Of a whole module, too."""
    report = yield
    if report.skipped:
        _refuse_in_lab(report)
    return report


def _refuse_in_lab(report: pytest.TestReport | pytest.CollectReport) -> None:
    if os.environ.get(IN_LAB) == "1":
        report.outcome = "failed"
        report.longrepr = f"skipped in the lab, where nothing may be: {report.longreprtext}"
