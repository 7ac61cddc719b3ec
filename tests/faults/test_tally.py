from pathlib import Path

import pytest

from tests.support.tally import Tally


def test_a_tally_counts_what_was_survived_and_remembers_the_first_loss():
    tally = Tally()
    for place in range(3):
        with tally.trial("a fault"):
            assert place != 1, "lost"
    assert tally.counts == {"a fault": [3, 2]}
    assert "lost" in str(tally.first_loss)


def test_a_loss_fails_its_test_when_it_ends(pytester: pytest.Pytester):
    pytester.makeconftest(Path(__file__).with_name("conftest.py").read_text())
    pytester.makepyfile(
        """
        def test_it(tally):
            for place in range(4):
                with tally.trial("some fault"):
                    assert place < 3
        """
    )
    result = pytester.runpytest("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*| some fault | 4 | 3 | 1 |*"])
