"""What `make conformance` prints, and that nothing is left out without a reason; the run itself needs a registry."""

import re

from exclusions import EXCLUSIONS
from shared_tests import table

REPORT = """<testsuites><testsuite>
<testcase classname="cases.TextOnlyTest" name="test_a"/>
<testcase classname="cases.TextOnlyTest" name="test_b"><skipped message="why"/></testcase>
<testcase classname="cases.VectorsTest" name="test_a"><failure message="no"/></testcase>
</testsuite></testsuites>"""


def test_the_table_counts_what_passed_was_left_out_and_failed(tmp_path):
    (tmp_path / "report.xml").write_text(REPORT)
    text, failures = table(tmp_path / "report.xml")
    assert failures == 1 and text.splitlines()[2:] == [
        "| TextOnlyTest | 1 | 1 | 0 |",
        "| VectorsTest | 0 | 0 | 1 |",
        "- VectorsTest.test_a",
    ]


def test_every_exclusion_carries_a_reason():
    for pattern, reason in EXCLUSIONS.items():
        assert re.compile(pattern) and len(reason.split()) > 3, pattern
