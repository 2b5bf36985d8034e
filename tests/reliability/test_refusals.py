"""What cannot work is refused before any work is done, in one message that says where, what and why."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from reliability.refusals import EVERY, REFUSED, arguments


@pytest.fixture(scope="module")
def told():
    """What came of every line, all tried in one process."""
    program = Path(__file__).with_name("refusals.py")
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_there_are_more_than_sixty_of_them_and_all_but_few_need_no_device(told):
    assert len(told["lines"]) == len(EVERY) and len({str(line) for line in EVERY}) == len(EVERY)
    assert len(REFUSED) >= 60 and told["untouched"]


@pytest.mark.parametrize("number", range(len(EVERY)), ids=[" ".join(arguments(*line[:2]))[:60] for line in EVERY])
def test_a_line_that_cannot_work_is_refused(told, number):
    came, expected = told["lines"][number], EVERY[number][2]
    assert (came["exit"], came["odd"], came["out"], came["left"]) == (2, None, "", [])
    assert "Traceback" not in came["said"]
    missing = [words for words in expected if words.lower() not in came["said"].lower()]
    assert not missing, came["said"]
