"""A short soak test with ten kills; `python -m tests.soak` makes as many as you like."""

from tests.soak.scenarios import make_scenarios, soak


def test_ten_kills_change_nothing(tokenizer_file, tmp_path):
    made = make_scenarios(tmp_path, tokenizer_file, files=5, documents=60, workers=2, row_lengths=[(128, 512)])
    said: list[str] = []
    tally = soak(made, kills=10, seed=2605, say=said.append, most=4)
    assert tally.killed == 10, said
    assert tally.ended >= 3
