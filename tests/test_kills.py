"Commands that are killed at a file operation and typed again; `python tests/kills.py SECONDS` goes on for longer."

import kills
import pytest


@pytest.mark.slow
def test_whatever_is_killed_ends_as_if_it_had_not_been():
    names = [name for name in kills.COMMANDS if name != "paper"]  # which takes minutes a kill, and is a sweep
    found = kills.main(3600, names, most=2 * len(names))
    reached = {key: number for key, number in found.items() if key[1] != "not reached"}
    assert {word for *_, word in found} == {"the same"} and sum(reached.values()) > len(names), found
