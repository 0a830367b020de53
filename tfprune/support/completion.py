"""What shells need to complete the commands of tfprune and their flags."""

from __future__ import annotations

from collections.abc import Mapping

from absl import flags

SHELLS = ("bash", "zsh", "fish")


def completion(shell: str, commands: Mapping[str, flags.FlagValues]) -> str:
    """A script that makes a shell complete `tfprune`.

    Args:
        shell: One of `SHELLS`.
        commands: Command -> its flags.
    """
    words = {name: [*_words(values), "--flagfile=", "--help"] for name, values in commands.items()}
    if shell == "fish":
        return "\n".join(_fish(words))
    return "\n".join([*(["autoload -U +X bashcompinit && bashcompinit"] if shell == "zsh" else []), *_bash(words)])


def _words(values: flags.FlagValues) -> list[str]:
    return [f"--{name}" if values[name].boolean else f"--{name}=" for name in values]


def _bash(words: Mapping[str, list[str]]) -> list[str]:
    """What is no flag, and the value of one, is completed as a file: `-o default`."""
    lines = [
        "_tfprune() {",
        '  local current="${COMP_WORDS[COMP_CWORD]}" words=""',
        '  if [ "$COMP_CWORD" -eq 1 ]; then',
        f'    words="{" ".join(words)} completion"',
        "  else",
        '    case "${COMP_WORDS[1]}" in',
        *(f'      {name}) words="{" ".join(own)}" ;;' for name, own in words.items()),
        "    esac",
        "  fi",
        '  COMPREPLY=($(compgen -W "$words" -- "$current"))',
        "}",
    ]
    return [*lines, "complete -o default -o nospace -F _tfprune tfprune"]


def _fish(words: Mapping[str, list[str]]) -> list[str]:
    lines = [f"complete -c tfprune -n __fish_use_subcommand -f -a '{name}'" for name in (*words, "completion")]
    for name, own in words.items():
        chosen = f"complete -c tfprune -n '__fish_seen_subcommand_from {name}' -l"
        lines += [f"{chosen} {word[2:].rstrip('=')}{' -r' if word.endswith('=') else ''}" for word in own]
    return lines
