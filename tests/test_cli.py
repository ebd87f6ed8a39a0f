"""What all commands have in common."""

import pytest

from fmen_jax import __version__
from fmen_jax.cli import COMMANDS
from tests.helpers import run_cli


def test_overview_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli('--help') == 0
    overview = capsys.readouterr().out
    assert all(f'\n  {name} ' in overview for name in COMMANDS)
    assert run_cli('--version') == 0
    assert capsys.readouterr().out == f'fmen_jax {__version__}\n'
    assert run_cli('enlarge', 'a.png') == 2
    assert "error: no command 'enlarge'" in capsys.readouterr().err
    assert run_cli() == 2


@pytest.mark.parametrize('command', ['train', 'sweep', 'ablate'])
def test_the_configuration_comes_first(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(command, '--help') == 0
    assert capsys.readouterr().out.startswith(f'usage: fmen-jax {command} CONFIG ')
    assert run_cli(command, '--workdir', 'runs', 'config.py') == 2
    assert 'error: the first argument is --workdir; expected CONFIG' in capsys.readouterr().err
    assert run_cli(command) == 2
    assert 'error: there are no arguments; expected CONFIG' in capsys.readouterr().err
