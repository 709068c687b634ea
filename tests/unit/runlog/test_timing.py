"""The clock of the phases, and its arithmetic of intervals against counting by hand."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_rl.runlog.timing import PhaseClock, covered_seconds, shared_seconds

ENDS = st.tuples(st.integers(0, 30), st.integers(0, 30)).map(lambda pair: (float(min(pair)), float(max(pair))))
INTERVALS = st.lists(ENDS, max_size=8)


def seconds_in(intervals) -> set[int]:
    """The whole seconds during which one of them is under way; all ends are whole numbers."""
    return {second for second in range(31) if any(start <= second < end for start, end in intervals)}


@given(INTERVALS, INTERVALS)
def test_intervals_count_each_second_once(ours, theirs):
    assert covered_seconds(ours) == len(seconds_in(ours))
    assert shared_seconds(ours, theirs) == shared_seconds(theirs, ours) == len(seconds_in(ours) & seconds_in(theirs))
    assert shared_seconds(ours, ours + theirs) == covered_seconds(ours)


def test_a_phase_that_comes_again_adds_up_and_a_failed_one_counts():
    clock = PhaseClock()
    with clock.phase("rollout"):
        time.sleep(0.01)
    with clock.phase("update"):
        pass
    with pytest.raises(KeyError), clock.phase("rollout"):
        raise KeyError
    first, second = clock.intervals("rollout")
    assert clock.of("rollout") == pytest.approx(first[1] - first[0] + second[1] - second[0])
    assert clock.intervals("rollout", "update", "never") == [first, second, *clock.intervals("update")]
    seconds = clock.seconds()
    assert seconds.keys() == {"seconds_rollout", "seconds_update", "seconds_total"}
    assert 0.01 <= seconds["seconds_rollout"] + seconds["seconds_update"] <= seconds["seconds_total"]
