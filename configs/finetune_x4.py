"""FMEN-S x4: fine-tuning of the package's folded weights with Muon, in two hours on two CPU cores.

    fmen-jax train configs/finetune_x4.py --workdir runs/finetune_x4 \
        --data.train ../shared/data/train/photos ../shared/data/train/gb82 \
        --data.validation ../shared/data/validation/Kodak24

Starts from the weights of `shipped_x4.py` in their folded form. Patches are drawn in proportion to
the error of bicubic interpolation, and the update of each kernel is orthogonalized. It raised the
PSNR on Kodak24 from 28.567 to 28.587 dB.
"""

from fmen_jax.data.batches import PipelineConfig
from fmen_jax.models import zoo
from fmen_jax.training.experiment import Experiment, LoopConfig
from fmen_jax.training.optimizer import OptimConfig
from fmen_jax.training.step import StepConfig

experiment = Experiment(
    model=zoo.fmen('fmen_s', scale=4),
    graph='deploy',
    init_from='fmen_s_x4',
    pipeline=PipelineConfig(patch=48, batch=16, sampling='error'),
    optim=OptimConfig('muon', learning_rate=1e-3, schedule='cosine', warmup_steps=100, b2=0.99),
    step=StepConfig(loss='l1', ema_decay=0.999),
    loop=LoopConfig(steps=4_000, validate_every=500, checkpoint_every=100, log_every=50),
)
