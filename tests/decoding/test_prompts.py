import pytest

from seriatim.core.errors import SeriatimError
from seriatim.decoding.prompts import read_twice


def test_text():
    assert read_twice("The sky is blue.", " Sky:") == "The sky is blue.\nThe sky is blue. Sky:"
    assert read_twice("C", "Q", intro="About the sky. ", separator=" | ", times=3) == "About the sky. C | C | CQ"
    assert read_twice("C", "Q", times=1) == "CQ"


def test_ids():
    context = [1, 2]
    assert read_twice(context, [3]) == [1, 2, 1, 2, 3]
    assert read_twice(context, [], intro=[9], separator=[0], times=3) == [9, 1, 2, 0, 1, 2, 0, 1, 2]
    assert context == [1, 2]


def test_no_reading_is_refused():
    with pytest.raises(SeriatimError, match="times is 0"):
        read_twice("C", "Q", times=0)
