"""Progress and errors on the console."""

import sys

import pytest
import torch

from pipeline.core.errors import UserError
from pipeline.runtime import console


@pytest.mark.parametrize(
    ("error", "status"), [(UserError("no\nsuch"), 1), (OSError(28, "No space left on device", "x"), 1)]
)
def test_a_mistake_is_one_line_on_stderr_and_a_status(
    error: Exception, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def entry() -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        console.run(entry)
    assert caught.value.code == status
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert shown.count("\n") == 1


def test_an_error_of_ours_keeps_its_traceback() -> None:
    def entry() -> None:
        raise KeyError("ours")

    with pytest.raises(KeyError):
        console.run(entry)


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


def test_a_network_too_large_for_memory_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        console.run(lambda: print(torch.empty(2**50)))
    assert caught.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("error: not enough memory for 4503599627370496 bytes: lower model.hidden")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("message", "size"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1 GiB", " for 2.00 GiB"),
        ("[enforce fail] not enough memory: you tried to allocate 8 bytes.", " for 8 bytes"),
        ("std::bad_alloc", ""),
    ],
)
def test_each_out_of_memory_message_of_torch_ends_in_one_line(
    message: str, size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise torch.OutOfMemoryError(message)

    with pytest.raises(SystemExit):
        console.run(fails)
    assert capsys.readouterr().err.startswith(f"error: not enough memory{size}: lower model.hidden")


def test_any_other_error_of_torch_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        console.run(lambda: print(torch.zeros(3).view(2)))
