"""Text on the terminal: lines, columns, exit statuses."""

from __future__ import annotations

import io
import sys

import pytest

from mrad_med.cli.console import ALL_WELL, NOTHING_DONE, SOME_FAILED, STOPPED, say, say_table


@pytest.mark.parametrize("to_error", [False, True])
def test_line_goes_to_one_stream_alone(capsys, to_error):
    say("Größe 病例", to_error=to_error)
    out, err = capsys.readouterr()
    assert (err if to_error else out) == "Größe 病例\n"
    assert (out if to_error else err) == ""


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_characters_that_a_stream_cannot_encode_are_escaped(monkeypatch, encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    say_table([("case", "score"), ("病例/a", "0.5")])
    say("1 of 1 case(s) scored")
    stream.seek(0)
    head, row, last = stream.read().splitlines()
    assert (head.split(), last) == (["case", "score"], "1 of 1 case(s) scored")
    assert row.endswith("0.5")
    assert "/a" in row


def test_columns_are_as_wide_as_their_widest_cell_and_nothing_trails(capsys):
    say_table([("case", "what", "remarks"), ("a", "photograph", ""), ("chest/1", "", "gap"), ("x", "", "")])
    assert capsys.readouterr().out.splitlines() == [
        "case     what        remarks",
        "a        photograph",
        "chest/1              gap",
        "x",
    ]


def test_table_of_a_head_alone_is_its_head(capsys):
    say_table([("case", "score")])
    assert capsys.readouterr().out == "case  score\n"


def test_row_of_another_length_is_a_mistake(capsys):
    with pytest.raises(ValueError, match="zip"):
        say_table([("case", "score"), ("a",)])
    assert capsys.readouterr().out == ""


def test_exit_statuses_are_those_that_shells_know():
    assert (ALL_WELL, SOME_FAILED, NOTHING_DONE) == (0, 1, 2)
    assert STOPPED == 128 + 2  # as of a program that SIGINT ended
