"""Claims: the command that runs them, what it keeps, and the page."""

import json
from pathlib import Path

import pytest

from seriatim.cli import main
from seriatim.cli.claims.claim import find_claims
from seriatim.cli.claims.page import page

ROOT = Path(__file__).parents[2]
SCRIPT = '''"""Two is more than
one.

Tried
with 3."""

from seriatim.cli.claims.claim import Finding

SOURCE = "1234.56789"


def run(quick, seed):
    return [Finding("two", "1 | 2", f"2 at seed {seed}", True), Finding("three", "3", "2", False)]
'''


@pytest.fixture
def folder(tmp_path):
    found = tmp_path / "claims"
    found.mkdir()
    (found / "012_two.py").write_text(SCRIPT)
    (found / "notes.txt").write_text("not a claim")
    return found


def run(folder, *arguments):
    page = folder.parent / "papers.md"
    return main(["claims", "--folder", str(folder), "--page", str(page), *arguments])


def test_a_claims_findings_are_kept_and_shown(folder, capsys):
    assert run(folder, "--seed", "3") == 0
    printed = capsys.readouterr().out
    assert "012 two" in printed
    assert "1 of 2 hold" in printed
    assert "DOES NOT HOLD" in printed
    kept = json.loads((folder / "results" / "012.json").read_text())
    assert kept["claim"] == "Two is more than one."
    assert kept["seed"] == 3
    assert kept["findings"][0] == {"what": "two", "paper": "1 | 2", "ours": "2 at seed 3", "holds": True}
    text = (folder.parent / "papers.md").read_text()
    assert "## 12. two" in text
    assert "| three | 3 | 2 | **does not hold** |" in text
    assert text.endswith("Tried with 3.\n")
    assert "1 \\| 2" in text


def test_quick_keeps_nothing(folder, capsys):
    assert run(folder, "--quick") == 0
    assert "1 of 2 hold" in capsys.readouterr().out
    assert not (folder / "results").exists()
    assert not (folder.parent / "papers.md").exists()


def test_a_script_that_fails_does_not_stop_the_others(folder, capsys):
    (folder / "001_bad.py").write_text(SCRIPT.replace("return [", "raise ValueError('no')\n    return ["))
    assert run(folder) == 1
    printed = capsys.readouterr().out
    assert "001 bad" in printed
    assert "FAILED: ValueError: no" in printed
    assert "1 of 2 hold" in printed


def test_a_claim_without_its_data_is_passed_over(folder, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("SERIATIM_DATA", str(tmp_path))
    script = SCRIPT.replace("import Finding", "import Finding, data").replace(
        "return [", "data('some/file.csv')\n    return ["
    )
    (folder / "001_far.py").write_text(script)
    assert run(folder) == 0
    assert f"passed over: needs some/file.csv in the folder that SERIATIM_DATA names, which is {str(tmp_path)!r}" in (
        capsys.readouterr().out
    )
    assert [path.name for path in (folder / "results").iterdir()] == ["012.json"]


def test_list_says_what_is_claimed(folder, capsys):
    assert run(folder, "--list") == 0
    assert capsys.readouterr().out == "012 two: Two is more than one.\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["13"], "no claim of paper 13 in"), (["--folder", "nowhere"], "folder is nowhere, which is no folder")],
)
def test_what_is_not_there_is_said(folder, capsys, arguments, message):
    assert run(folder, *arguments) == 2
    assert message in capsys.readouterr().err


def test_every_claim_says_what_it_claims_and_where_from():
    for claim in find_claims(ROOT / "claims", []):
        assert len(claim.says()) > 40
        assert claim.load().SOURCE


def test_the_page_is_that_of_the_results():
    assert (ROOT / "docs" / "papers.md").read_text(encoding="utf-8") == page(ROOT / "claims" / "results")
