"Commands that are killed at a file operation and typed again; `python tests/kills.py SECONDS` goes on for longer."

import kills
import pytest


@pytest.mark.slow
def test_whatever_is_killed_ends_as_if_it_had_not_been():
    names = ["evaluate", "extract", "probe", "train", "build_bpc", "sweep"]
    found = kills.main(3600, names, most=5 * len(names))
    assert {word for _, word in found} == {"the same"} and sum(found.values()) > 20, found
