"""Runs whose loss or parameters are not finite end with an error, and nothing broken is saved."""

from collections.abc import Callable

import pytest

from fmen_jax.training import loop
from tests.helpers import SHORT, SmokeRun

pytestmark = pytest.mark.usefixtures('compilation_cache')
WILD = {'name': 'sgd', 'schedule': 'constant'}


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_last_checkpoint(
    run: Callable[[str], SmokeRun],
) -> None:
    made = run('run')
    often = {**SHORT['loop'], 'steps': 30}
    experiment = made.experiment(
        model=SHORT['model'], loop=often, optim={**WILD, 'learning_rate': 1e4}, step={'loss': 'l2'}
    )
    with pytest.raises(loop.DivergedError, match=r'step \d+ (is|are) (nan|inf|not)') as raised:
        made.train(experiment)
    saved = [int(path.name) for path in (made.workdir / 'checkpoints').glob('[0-9]*')]
    assert f'The last checkpoint is of step {max(saved)}.' in str(raised.value)
    assert not (made.workdir / 'weights.safetensors').exists()


def test_parameters_that_are_not_finite_after_the_last_update_are_not_saved(
    run: Callable[[str], SmokeRun],
) -> None:
    """The loss of the one step is that of the initial weights, and finite."""
    made = run('run')
    experiment = made.experiment(
        model=SHORT['model'], loop={'steps': 1}, optim={**WILD, 'learning_rate': 1e38}
    )
    with pytest.raises(loop.DivergedError, match='the parameters after step 1 are not finite'):
        made.train(experiment)
    assert not list((made.workdir / 'checkpoints').glob('[0-9]*'))
    assert not (made.workdir / 'weights.safetensors').exists()
