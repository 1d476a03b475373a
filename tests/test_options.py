"""Dataclasses become flags, and flags become objects of them."""

from dataclasses import dataclass
from typing import Literal

import pytest

from hf_speech_ssl.options import (
    OptionParser,
    ReadingOptions,
    add_options,
    argument,
    flag,
    make_options,
    parse_settings,
    required_flag,
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Every kind of option."""

    names: list[str] = argument("names", "NAME")
    count: int | None = flag(None, "how many", short="-c")
    kind: Literal["one", "two"] = flag("one", "which")
    weights: list[float] = flag([0.5, 1.0], "weights")
    sure: bool = flag(False, "sure")
    normalize: bool = flag(True, "normalize")
    target: str = required_flag("where to")
    note: str = "no option"


@dataclass(frozen=True)
class Settings:
    """Options of a script."""

    streaming: bool = flag(False, "streaming")
    best: bool = flag(True, "best")
    steps: int = flag(10, "steps")


def parse(*words: str, **defaults) -> Options:
    parser = OptionParser(prog="it")
    add_options(parser, [Options], defaults)
    return make_options(parser.parse_args(words), [Options])[0]


def test_values_have_the_types_of_the_fields() -> None:
    assert parse("a", "--target", "x") == Options(names=["a"], target="x")
    words = (
        "--sure",
        "a",
        "b",
        "-c",
        "3",
        "--kind",
        "two",
        "--weights",
        "1",
        "2e-1",
        "--target",
        "x",
        "--no_normalize",
    )
    expected = Options(
        names=["a", "b"], count=3, kind="two", weights=[1.0, 0.2], sure=True, normalize=False, target="x"
    )
    assert parse(*words) == expected
    assert parse("a", "--target", "x", count=7).count == 7


def test_a_list_is_one_of_its_own() -> None:
    assert Options(names=["a"], target="x").weights is not Options(names=["a"], target="x").weights


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "x"], "required: NAME"),
        (["a"], "required: --target"),
        (["a", "--target", "x", "--count", "many"], "invalid int value: 'many'"),
        (["a", "--target", "x", "--kind", "three"], "invalid choice: 'three'"),
        (["a", "--target", "x", "--targ", "y"], "unrecognized arguments: --targ y"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit):
        parse(*words)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("it: ") and message in line and line.endswith("it --help shows what there is.")


def test_help_shows_defaults_where_there_are_any(capsys) -> None:
    with pytest.raises(SystemExit):
        parse("--help", count=7)
    text = " ".join(capsys.readouterr().out.split())
    assert "how many (default: 7)" in text and "weights (default: 0.5 1.0)" in text and "which (default: one)" in text
    assert "sure (default" not in text and "where to (default" not in text


def test_scripts_take_values_of_booleans() -> None:
    for words, expected in (
        ([], Settings()),
        (["--streaming", "--best", "false"], Settings(streaming=True, best=False)),
        (["--streaming", "False", "--no_best", "--steps", "3"], Settings(best=False, steps=3)),
    ):
        assert parse_settings(words, "A script.", [Settings]) == [expected]
    with pytest.raises(SystemExit):
        parse_settings(["--streaming", "perhaps"], "A script.", [Settings])


def test_a_type_that_no_word_can_be_is_refused() -> None:
    @dataclass(frozen=True)
    class Odd:
        table: dict = flag(None, "a table")

    with pytest.raises(TypeError, match="Option table has type"):
        add_options(OptionParser(), [Odd], {})


def test_senseless_values_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="--batch_seconds and --max_samples must be above 0, got 0.0 and None"):
        ReadingOptions("data", batch_seconds=0.0)
