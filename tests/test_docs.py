"""The documentation: its code runs, its commands exist, its tutorials run, and the site builds."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmen_jax.cli import COMMANDS
from tests.helpers import NO_TORCH, ROOT, run_cli

PAGES = sorted([*ROOT.glob('*.md'), *ROOT.glob('docs/*.md')])
TUTORIALS = sorted((ROOT / 'docs/tutorials').glob('*.py'))
# commands whose options depend on a configuration, and the one that stands for a page's CONFIG
CONFIGS = {
    'train': 'configs/quickstart.py',
    'sweep': 'configs/quickstart.py',
    'ablate': 'configs/ablate_backbone.py',
}
EXTRAS = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['optional-dependencies']


def python_blocks(page: Path) -> list[str]:
    """The fenced blocks of a page; the one after the first line of a module's docstring."""
    text = page.read_text(encoding='utf-8')
    if page.suffix == '.py':
        indented = re.search(r'\n\n((?:    .*\n|\n)+)', text)
        return [textwrap.dedent(indented[1])] if indented else []
    return re.findall(r'^```python\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)


def shell_commands(page: Path) -> Iterator[str]:
    """Commands of indented blocks, with continued lines joined."""
    text = page.read_text(encoding='utf-8').replace('\\\n', ' ')
    text = re.sub(r'^```.*?^```$', '', text, flags=re.MULTILINE | re.DOTALL)
    for line in re.findall(r'^    +((?:fmen-jax|python|pip) .*)$', text, re.MULTILINE):
        yield from line.split('&&')


WITH_PYTHON = [
    # the proof of parity.md takes half a minute
    pytest.param(page, marks=[pytest.mark.slow] if page.name == 'parity.md' else [], id=page.name)
    for page in (ROOT / 'fmen_jax/__init__.py', *PAGES)
    if python_blocks(page)
]


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.name)
def test_python_of_a_page_is_fenced(page: Path) -> None:
    """Indented blocks are for the shell; Python in them would not be run by a test."""
    text = page.read_text(encoding='utf-8')
    outside = re.sub(r'^```.*?^```$', '', text, flags=re.MULTILINE | re.DOTALL)
    python = r'^    +(?:import |from \w+.* import |\w+ = |fmen_jax\.|print\().*$'
    assert re.findall(python, outside, re.MULTILINE) == []


@pytest.mark.parametrize('page', WITH_PYTHON)
def test_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if any('run_reference' in block for block in python_blocks(page)):
        pytest.importorskip('torch', reason=NO_TORCH)
    (tmp_path / 'docs').mkdir()
    shutil.copy(ROOT / 'docs/astronaut.png', tmp_path / 'docs')
    monkeypatch.chdir(tmp_path)
    # a module, because dataclasses look up the one that they are defined in
    module = types.ModuleType('page')
    monkeypatch.setitem(sys.modules, 'page', module)
    for block in python_blocks(page):
        exec(compile(block, str(page), 'exec'), vars(module))


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.name)
def test_commands_of_a_page_exist(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in shell_commands(page):
        words = shlex.split(command, comments=True)
        for extras in re.findall(r'\.\[([\w,]+)\]', command):
            assert set(extras.split(',')) <= set(EXTRAS), command
        if words[:1] == ['python'] and '-m' not in words and '-c' not in words:
            assert (ROOT / words[1]).is_file(), command
        if words[:3] == ['python', '-m', 'pytest']:
            assert all((ROOT / w.split('::')[0]).exists() for w in words if w.startswith('tests/'))
        if 'fmen-jax' in words:
            check_options(words[words.index('fmen-jax') + 1 :], capsys)


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.name)
def test_the_tests_that_a_page_names_exist(page: Path) -> None:
    named = set(re.findall(r'\btests/[\w/]+\.py', page.read_text(encoding='utf-8')))
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def check_options(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """`COMMAND ... --option ...` exists, and so does every one of its options."""
    if words[0] in ('COMMAND', '--version', '--help'):
        return
    assert words[0] in COMMANDS, words
    options = {word.split('=')[0] for word in words[1:] if re.match(r'--[a-z]', word)}
    config = words[1:2] if words[0] in CONFIGS else []
    if config and not (ROOT / config[0]).is_file():  # a placeholder, such as CONFIG
        config = [CONFIGS[words[0]]]
    assert run_cli(*words[:1], *config, '--help') == 0
    offered = set(re.findall(r'--[\w.-]+', capsys.readouterr().out))
    assert options - {'--help'} <= offered, options - offered


def test_a_wrong_command_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    check_options(['upscale', 'a.png', '--tile', '64'], capsys)
    with pytest.raises(AssertionError):
        check_options(['upscale', 'a.png', '--tiles', '64'], capsys)
    with pytest.raises(AssertionError):
        check_options(['enlarge', 'a.png'], capsys)


def test_relative_links_of_readme() -> None:
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    links = re.findall(r'\]\(([^)#:]+)(?:#[^)]*)?\)', text)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.slow  # each starts JAX anew and compiles
@pytest.mark.parametrize('tutorial', TUTORIALS, ids=lambda p: p.stem)
def test_a_tutorial_runs(tutorial: Path, tmp_path: Path) -> None:
    source = tutorial.read_text(encoding='utf-8')
    for module in re.findall(r'^(?:import|from) (\w+)', source, re.MULTILINE):
        if module in ('torch', 'matplotlib'):
            pytest.importorskip(module, reason=f'{module} is not installed')
        importlib.import_module(module)
    done = subprocess.run(
        [sys.executable, '-W', 'error', tutorial],
        cwd=tmp_path,
        env=os.environ | {'FMEN_JAX_SHORT': '1', 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow  # half a minute, most of it for the pages of the API
def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    for module in ('sphinx', 'myst_parser', 'pydata_sphinx_theme', 'jupytext', 'sphinx_copybutton'):
        pytest.importorskip(module, reason='the extra `docs` is not installed')
    site = tmp_path / 'site'
    # the extra `docs` does not install PyTorch
    without_torch = tmp_path / 'path'
    without_torch.mkdir()
    (without_torch / 'torch.py').write_text('raise ModuleNotFoundError("absent", name="torch")')
    path = os.pathsep.join(map(str, (without_torch, ROOT)))
    done = subprocess.run(
        [
            *(sys.executable, '-m', 'sphinx', '-E', '-W', '--keep-going', '-b', 'html'),
            *('-d', tmp_path / 'doctrees', ROOT / 'docs', site),
        ],
        env=os.environ | {'FMEN_JAX_COLAB': 'someone/fmen_jax/blob/site', 'PYTHONPATH': path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for page in PAGES:
        if page.parent.name == 'docs':
            assert (site / f'{page.stem}.html').is_file()
    api = (site / 'api/fmen_jax.network.html').read_text(encoding='utf-8')
    assert 'id="fmen_jax.network.load"' in api
    assert 'its keys and shapes determine configuration and scale' in api
    for tutorial in TUTORIALS:
        page = (site / f'tutorials/{tutorial.stem}.html').read_text(encoding='utf-8')
        assert f'github/someone/fmen_jax/blob/site/_static/notebooks/{tutorial.stem}.ipynb' in page
        notebook = json.loads((site / f'_static/notebooks/{tutorial.stem}.ipynb').read_text())
        assert notebook['cells'][0]['cell_type'] == 'markdown'
        install = [c for c in notebook['cells'] if '%pip install' in ''.join(c['source'])]
        assert [c['cell_type'] for c in install] == ['code']
