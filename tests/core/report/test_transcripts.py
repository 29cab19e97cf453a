"""What reports show of planted audits is what stands in the transcripts."""

import pytest
import transcripts


@pytest.mark.parametrize("name", transcripts.TEXTS)
def test_a_report_is_that_of_its_transcript(name):
    told = (transcripts.FOLDER / name).read_text(encoding="utf-8")
    assert transcripts.TEXTS[name]() == told, "run python tests/transcripts.py and read the change"
