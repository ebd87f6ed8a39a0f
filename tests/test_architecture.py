"""The rules of docs/architecture.md that a test can check."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT

PACKAGE = ROOT / 'fmen_jax'


def layers() -> list[str]:
    """The names below fmen_jax in the order of docs/architecture.md: the block after 'Layers'."""
    text = (ROOT / 'docs/architecture.md').read_text(encoding='utf-8')
    block = text.partition('## Layers')[2].split('\n\n    ')[1].partition('\n\n')[0]
    return [line.split()[0].removesuffix('/').removesuffix('.py') for line in block.splitlines()]


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob('*.py'))}


def imports(path: Path) -> set[str]:
    """The modules of fmen_jax that a file imports: at the top, in functions, and for typing."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f'{path}: import absolutely'
            # a name may be a module of its own or something inside one
            inner = {f'{node.module}.{alias.name}' for alias in node.names}
            found |= {name if name in MODULES else node.module for name in inner}
    return {name for name in found if name in MODULES}


def test_every_name_has_its_layer() -> None:
    names = {module.split('.')[1] for module in MODULES if '.' in module}
    assert names - {'__main__'} == set(layers())


def test_imports_go_upwards_only() -> None:
    order = layers()
    wrong = [
        f'{module} imports {other}'
        for module, path in MODULES.items()
        for other in imports(path)
        if module.count('.') and other.count('.') and module != 'fmen_jax.__main__'
        if order.index(module.split('.')[1]) < order.index(other.split('.')[1])
    ]
    assert not wrong, wrong


def test_there_are_no_import_cycles() -> None:
    # the package itself imports nothing at the top; names are looked up when they are used
    graph = {module: imports(path) - {'fmen_jax'} for module, path in MODULES.items()}
    del graph['fmen_jax']
    assert cycle_in(graph) == []
    assert cycle_in({'a': {'b'}, 'b': {'c'}, 'c': {'b'}}) == ['b', 'c', 'b']


def cycle_in(graph: dict[str, set[str]]) -> list[str]:
    """The modules of a cycle, the first one repeated at the end; empty if there is none."""
    done: set[str] = set()

    def search(path: list[str]) -> list[str]:
        for other in sorted(graph[path[-1]]):
            if other in path:
                return [*path[path.index(other) :], other]
            if other not in done and (found := search([*path, other])):
                return found
        done.add(path[-1])
        return []

    return next((found for module in graph if (found := search([module]))), [])


def test_tests_do_not_import_tests() -> None:
    for path in (ROOT / 'tests').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('tests'):
                shared = ('tests.helpers', 'tests.fuzz')
                assert (node.module or '').startswith(shared), f'{path} imports {node.module}'


def test_import_is_light_and_public_names_are_there() -> None:
    code = (
        'import sys, fmen_jax; assert "jax" not in sys.modules; '
        '[getattr(fmen_jax, name) for name in fmen_jax.__all__]; '
        'assert "jax" in sys.modules and "torch" not in sys.modules'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.slow  # starts pytest three times, which imports JAX
def test_in_ci_a_skipped_parity_test_fails(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytester.makeconftest((ROOT / 'tests/conftest.py').read_text())
    monkeypatch.setenv('PYTHONPATH', str(ROOT))  # for tests.helpers
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
