"""The command starts once more, with the setting, and no more often."""

import os
import subprocess
import sys

import pytest

SCRIPT = (
    'import os; from fmen_jax.runtime.huge_pages import start_with_huge_pages; '
    'start_with_huge_pages(); print(os.getpid(), os.environ["GLIBC_TUNABLES"])'
)


@pytest.mark.skipif(sys.platform != 'linux', reason='glibc has the setting')
@pytest.mark.parametrize(
    ('given', 'expected'),
    [({}, 'glibc.malloc.hugetlb=1'), ({'GLIBC_TUNABLES': 'a=b'}, 'a=b')],
)
def test_the_command_has_huge_pages(given: dict[str, str], expected: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != 'GLIBC_TUNABLES'} | given
    command = [sys.executable, '-c', SCRIPT]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        output, _ = process.communicate()
    assert output.split() == [str(process.pid), expected]
