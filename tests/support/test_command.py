import errno
import os
import signal

import pytest
from absl import flags

from tfprune.errors import DataError, DivergedError, PlanError, UsageError
from tfprune.support.command import run_command


def call(argv, run=lambda values, arguments: None):
    def define(values):
        flags.DEFINE_integer("count", 3, "How many.", flag_values=values)
        flags.DEFINE_boolean("loud", False, "Whether loud.", flag_values=values)
        flags.DEFINE_string("name", None, "The name.", flag_values=values)

    return run_command("python -m thing", "Does a thing.\n\nMore of it.", define, run, argv, "Go on like this.")


def test_flags_and_arguments_reach_the_command():
    seen = []
    assert call(["a", "--count=5", "--loud", "b"], lambda v, rest: seen.append((v.count, v.loud, v.name, rest))) == 0
    assert seen == [(5, True, None, ["a", "b"])]


def test_flags_can_come_from_a_file_and_the_command_line_wins(tmp_path):
    (tmp_path / "flags").write_text("--count=9\n# a remark\n--name=of the file\n--loud\n", encoding="utf-8")
    seen = []
    argv = [f"--flagfile={tmp_path / 'flags'}", "--name=given"]
    assert call(argv, lambda v, rest: seen.append((v.count, v.name, v.loud))) == 0
    assert seen == [(9, "given", True)]


def test_calls_do_not_remember_each_others_flags():
    seen = []
    call(["--count=5"])
    call([], lambda values, rest: seen.append(values.count))
    assert seen == [3]


@pytest.mark.parametrize("flag", ["--help", "-h", "-help", "--helpfull", "--helpshort"])
def test_help_is_printed_and_nothing_is_run(flag, capsys):
    assert call([flag, "--count=5"], lambda values, rest: pytest.fail("ran")) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("Does a thing.")
    assert "usage: python -m thing" in shown.out
    assert "--count: How many. (default: 3)" in shown.out
    assert "--name: The name.\n" in shown.out
    assert "--flagfile" in shown.out
    assert shown.err == ""


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--cuont=5"], ["cuont", "count"]),
        (["--count=many"], ["--count", "many"]),
        (["--count=1.5"], ["--count", "1.5"]),
        (["--loud=perhaps"], ["--loud", "perhaps"]),
        (["--name"], ["name"]),
        (["--flagfile=/nowhere/flags"], ["/nowhere/flags"]),
    ],
)
def test_a_wrong_flag_is_status_2_and_one_line(argv, told, capsys):
    assert call(argv, lambda values, rest: pytest.fail("ran")) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert shown.err.startswith("python -m thing: ")
    assert "See --help." in shown.err
    for word in told:
        assert word in shown.err


@pytest.mark.parametrize("kind", [UsageError, DataError, PlanError])
def test_a_mistake_of_the_users_is_status_2_and_one_line(kind, capsys):
    def fail(values, arguments):
        raise kind("first line\n   second line")

    assert call([], fail) == 2
    assert capsys.readouterr().err == "python -m thing: first line second line\n"


def test_a_failure_that_is_foreseen_is_status_1_and_one_line(capsys):
    def fail(values, arguments):
        raise DivergedError("The loss is nan.")

    assert call([], fail) == 1
    assert capsys.readouterr().err == "python -m thing: The loss is nan.\n"


def test_a_bug_is_loud():
    def fail(values, arguments):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        call([], fail)


# What stops a command.


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_the_command_in_one_line(number, status, capsys):
    # Where the tests run in the background, Ctrl-C is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.getsignal(signal.SIGTERM)
    assert call([], lambda values, rest: os.kill(os.getpid(), number)) == status
    assert capsys.readouterr().err == f"python -m thing: stopped by {number.name}. Go on like this.\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_passes_through_what_catches_exceptions(capsys):
    def run(values, rest):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception:
            pytest.fail("caught")

    assert call([], run) == 143


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/mnt/runs/x.npz"), "'/mnt/runs/x.npz': No space left on"),
        (OSError(errno.EFBIG, "File too large"), "File too large. Go on like this."),
        (PermissionError(errno.EACCES, "Permission denied", "a"), "'a': Permission denied"),
    ],
)
def test_what_the_machine_refuses_is_status_1_and_one_line(error, told, capsys):
    def run(values, rest):
        raise error

    assert call([], run) == 1
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1


def test_a_full_disk_that_tensorflow_tells_of_is_one_line_too(capsys):
    import tensorflow as tf

    def run(values, rest):
        raise tf.errors.ResourceExhaustedError(None, None, "w/variables.index; No space left on device")

    assert call([], run) == 1
    assert "variables.index; No space left on device. Go on like this." in capsys.readouterr().err


def test_what_else_tensorflow_tells_passes_through():
    import tensorflow as tf

    def run(values, rest):
        raise tf.errors.InvalidArgumentError(None, None, "shapes differ")

    with pytest.raises(tf.errors.InvalidArgumentError):
        call([], run)
