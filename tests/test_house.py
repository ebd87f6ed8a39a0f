"""The rules of the house that a machine can hold."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

ROW = [
    *('runtime', 'data', 'models', 'porting', 'evaluation'),
    *('training', 'export', 'inference', 'cli'),
]
PACKAGE = ROOT / 'fmen_jax'


def imports(path: Path) -> set[str]:
    """The names below fmen_jax that a file imports, wherever it does; not for typing alone."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == 'TYPE_CHECKING'
        for node in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in typing_only:
            if node.module == 'fmen_jax':
                found |= {alias.name for alias in node.names}
            elif node.module.startswith('fmen_jax.'):
                found.add(node.module.split('.')[1])
    return found


def test_a_package_imports_only_from_its_left() -> None:
    for name in ROW[:-1]:
        for path in [*PACKAGE.glob(f'{name}.py'), *PACKAGE.glob(f'{name}/**/*.py')]:
            wrong = imports(path) & set(ROW[ROW.index(name) + 1 :])
            assert not wrong, f'{path} imports {wrong}'
    assert {'models', 'porting'} <= imports(PACKAGE / 'porting/state_dict.py')  # it sees them


def test_a_file_is_a_page_or_three() -> None:
    for path in [*PACKAGE.rglob('*.py'), *ROOT.glob('tests/**/*.py')]:
        assert len(path.read_text().splitlines()) <= 320, path
    for path in ROOT.glob('scripts/*.py'):
        assert len(path.read_text().splitlines()) <= 80, path


def test_import_is_light_and_public_names_are_there() -> None:
    code = (
        'import sys, fmen_jax; assert "jax" not in sys.modules; '
        '[getattr(fmen_jax, name) for name in fmen_jax.__all__]; '
        'assert "jax" in sys.modules and "torch" not in sys.modules'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


def test_in_ci_a_skipped_parity_test_fails(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytester.makeconftest((ROOT / 'tests/conftest.py').read_text())
    pytester.makeini('[pytest]\nmarkers = parity')
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parity
        def test_one():
            pytest.skip('no torch')

        def test_other():
            pytest.skip('not a parity test')
        """
    )
    shared = tmp_path / 'shared'
    monkeypatch.setenv('FMEN_JAX_SHARED', str(shared))
    monkeypatch.setenv('CI', 'true')
    args = ('-p', 'no:pytester', '-p', 'no:xdist')
    pytester.runpytest_subprocess(*args).assert_outcomes(skipped=2)
    shared.mkdir()
    pytester.runpytest_subprocess(*args).assert_outcomes(failed=1, skipped=1)
    whole = pytester.makepyfile(test_whole="import pytest\npytest.importorskip('no_such_module')")
    pytester.runpytest_subprocess(*args, whole).assert_outcomes(errors=1)
    whole.unlink()
    monkeypatch.delenv('CI')
    pytester.runpytest_subprocess(*args).assert_outcomes(skipped=2)
