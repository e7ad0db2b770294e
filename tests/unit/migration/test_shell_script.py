from __future__ import annotations

import pytest

from trainer.migration.foreign import Unresolved
from trainer.migration.shell_script import Script, read_script


def words(script: Script) -> list[object]:
    """Return the words of the last command."""
    return [script.marks.value(word) for word in script.commands[-1].words]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("run a 'b c' \"d e\" f\\ g", ["run", "a", "b c", "d e", "f g"]),
        ("A=1; run $A ${A} \"$A\" '$A' x$A", ["run", "1", "1", "1", "$A", "x1"]),
        ("A='1 2'; run $A \"$A\"", ["run", "1", "2", "1 2"]),
        ('A=" --x 1 \\\n  --y 2"; run $A', ["run", "--x", "1", "--y", "2"]),
        ("A=(1 'b c' # no\n 3)\nrun ${A[@]} \"${A[@]}\"", ["run", "1", "b", "c", "3", "1", "b c", "3"]),
        ("A=(1); A+=(2 3); B=x; B+=y; run ${A[*]} $B", ["run", "1", "2", "3", "xy"]),
        ("run ${A:-3} ${B-4} ${C:=5} $C ${C:+6}", ["run", "3", "4", "5", "5", "6"]),
        ("A=6; run $((A * 2 + 1)) $(( $A / 4 )) $((${A} % 4)) $((2**10))", ["run", "13", "1", "2", "1024"]),
        ("run \\\n  --a 1 \\\n  --b", ["run", "--a", "1", "--b"]),
        ("A=1 B=2 run x", ["run", "x"]),
        ("export A=7\ndeclare B=8\nreadonly C=9\nrun $A $B $C", ["run", "7", "8", "9"]),
        ("run a > log 2>&1", ["run", "a"]),
        ("if [ 1 = 1 ]; then A=y; else A=n; fi; run $A", ["run", "y"]),
        ("Z=2; if [ $Z -gt 2 ]; then A=a; elif [[ $Z == 2 ]]; then A=b; else A=c; fi; run $A", ["run", "b"]),
        ('if [ -z "$(true)" ] || [ 1 = 1 ]; then A=y; fi; run $A', ["run", "y"]),
        ("if [ ! 1 = 2 ] && (( 3 > 2 )); then A=y; fi; run $A", ["run", "y"]),
        ("case big in small) A=1;; b*) A=2;; *) A=3;; esac; run $A", ["run", "2"]),
        ("run `pwd`/x $(pwd)/y", ["run", "./x", "./y"]),
        ("run $'a\\tb'", ["run", "a\tb"]),
        ("A='--x 1'; srun --n 2 bash -c 'launch $A --y'", ["launch", "--x", "1", "--y"]),
        ("A='--x 1'; /bin/sh -ec \"launch $A --y\"", ["launch", "--x", "1", "--y"]),
        ("A='launch --x \"1 2\"'; eval $A --y", ["launch", "--x", "1 2", "--y"]),
        ('A=--x; if [ -f y ]; then A="$A --y"; fi; run $A', ["run", "--x"]),
        ("A=(--x); if [ -f y ]; then A+=(--y); fi; run ${A[@]}", ["run", "--x"]),
        ('A="say \\"hi\\" \\$B"; run "$A"', ["run", 'say "hi" $B']),
        ("run größe --ä=ü", ["run", "größe", "--ä=ü"]),
        ("\r\nA=1\r\nrun $A\r\n", ["run", "1"]),
    ],
)
def test_words_are_those_of_a_shell(text: str, expected: list[str]) -> None:
    assert words(read_script(text, "s.sh", {})) == expected


def test_what_only_running_would_say_is_marked() -> None:
    script = read_script('A=$(nproc); run $A "x$B" $1 $((A + 1)) ${#C} ${D%x}', "s.sh", {})
    found = words(script)
    assert found[0] == "run"
    assert [one.text if isinstance(one, Unresolved) else one for one in found[1:]] == [
        "$(nproc)",
        "x$B",
        "$1",
        "$((A + 1))",
        "${#C}",
        "${D%x}",
    ]


def test_variables_of_the_environment_are_there() -> None:
    assert words(read_script("run $A ${B:-2}", "s.sh", {"A": "1", "B": "3"})) == ["run", "1", "3"]


def test_what_is_left_out_is_told_and_its_variables_forgotten() -> None:
    text = "A=1\nfor i in 1 2; do A=$i; done\nwhile true; do B=2; done\nf() { C=3; }\nif [ -f x ]; then D=4; fi\nrun $A"
    script = read_script(text, "s.sh", {})
    assert [note.partition(": ")[0] for note in script.notes] == ["s.sh:2", "s.sh:3", "s.sh:4", "s.sh:5"]
    found = words(script)
    assert isinstance(found[1], Unresolved)
    assert found[1].text == "$A"


def test_nothing_is_run(tmp_path: object, capfd: pytest.CaptureFixture[str]) -> None:
    read_script(
        f"touch {tmp_path}/here\nA=$(touch {tmp_path}/there)\neval 'touch {tmp_path}/x'\necho hello", "s.sh", {}
    )
    assert list(__import__("pathlib").Path(str(tmp_path)).iterdir()) == []
    assert capfd.readouterr().out == ""


def test_texts_that_are_written_to_files_are_kept() -> None:
    script = read_script(
        'N=3\ncat <<EOT > $OUT/x.json\n{"a": $N, "b": "\\$c"}\nEOT\ncat > y <<\'E\'\n$N\nE\n', "s.sh", {}
    )
    assert [(one.text, one.target) for one in script.texts[1:]] == [("$N\n", "y")]
    assert script.texts[0].text == '{"a": 3, "b": "$c"}\n'


@pytest.mark.parametrize(
    "text",
    [
        "if [", "A=(", "run ${", "$((", "run \"", "cat <<EOT\nx", "\x00\x01", "A=$((1/0)); run $A", "((((((((((",
        "case", "\ue0001\ue001", "A=$((2**100000)); run $A", "A=$((9**9**9**9)); run $A", "esac fi done", "`", "[[ a",
        "run $((08))", "A=A; run $((A))", "run " + "(" * 500, "A=" + "$((" * 300,
    ],
)  # fmt: skip
def test_broken_scripts_are_read_as_far_as_they_go(text: str) -> None:
    read_script(text, "s.sh", {})
