"""What a person sees while a stage works."""

import sys

import pytest

from pipeline import console


def test_elsewhere_than_on_a_terminal_progress_is_a_line_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("epoch", 2) as advance:
        advance("val_loss 0.5")
        advance("")
    assert capsys.readouterr().out == "epoch 1/2  val_loss 0.5\nepoch 2/2\n"


def test_on_a_terminal_progress_is_a_bar_below_the_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with console.progress("epoch", 2) as advance:
        advance("[red] is a label, not a colour")
        advance("")
    shown = capsys.readouterr().out
    assert "1: [red] is a label, not a colour" in shown
    assert "epoch" in shown
    assert "2/2" in shown
