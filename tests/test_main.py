"""All commands behind one name, and what shells complete of them."""

import shutil
import subprocess
import sys

import pytest

from tfprune.__main__ import COMMANDS, main


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_the_help_names_every_command(argv, capsys):
    assert main(argv, "tfprune") == 0
    printed = capsys.readouterr().out
    assert [name for name in COMMANDS if f"\n  {name} " not in printed] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_told_under_the_name_by_which_it_was_called(name, capsys):
    assert main([name, "--help"], "tfprune") == 0
    assert f"usage: tfprune {name} [" in capsys.readouterr().out
    assert main([name, "--no_such_flag"], "tfprune") == 2
    message = capsys.readouterr().err
    assert message.startswith(f"tfprune {name}: ")
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["prun"], "Unknown command 'prun'. Did you mean 'prune'?"),
        (["completion"], "completion takes a shell (bash, zsh, fish); received none."),
        (["completion", "tcsh"], "completion takes a shell (bash, zsh, fish); received tcsh."),
        (["--nope"], "Unknown command line flag 'nope'"),
    ],
)
def test_what_is_no_command_is_told_in_one_line(argv, message, capsys):
    assert main(argv, "tfprune") == 2
    told = capsys.readouterr().err
    assert told.startswith("tfprune: ")
    assert message in told
    assert told.count("\n") == 1


def test_the_module_is_the_same_in_a_process_of_its_own():
    done = subprocess.run([sys.executable, "-m", "tfprune", "run", "--nope"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("python -m tfprune run: ")


def completed(script, *words):
    """What bash offers for the last of some words."""
    given = " ".join(f"'{word}'" for word in words)
    ask = f'COMP_WORDS=({given}); COMP_CWORD={len(words) - 1}; _tfprune; echo "${{COMPREPLY[@]}}"'
    return subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_commands_and_flags(capsys):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert completed(script, "tfprune", "") == [*COMMANDS, "completion"]
    assert completed(script, "tfprune", "lo") == ["lottery"]
    assert completed(script, "tfprune", "prune", "--mac") == ["--macs="]
    assert completed(script, "tfprune", "bench", "--qu") == ["--quick"]  # no value follows
    assert "--paper_table=" in completed(script, "tfprune", "report", "")
    assert completed(script, "tfprune", "nope", "--") == []


def test_zsh_and_fish_have_every_flag_too(capsys):
    for shell in ("zsh", "fish"):
        assert main(["completion", shell]) == 0
        script = capsys.readouterr().out
        assert "seeds" in script
        assert "-l macs -r" in script or "--macs=" in script
    assert "__fish_seen_subcommand_from bench' -l quick\n" in script
