"""Re-parameterisation: from the wide graph that is trained to the 3x3 convolutions that run.

Pure functions, dict -> dict, jittable and differentiable (FMEN, section 3.3: structural
re-parameterisation). `collapse` makes one convolution of one RRRB and is used in training too;
`fold` makes the deploy graph of the whole network, batch norms included. Kernels are
[kh, kw, in, out]. Both are exact, image borders included; they compute in the dtype given.
"""

from functools import partial

import jax.numpy as jnp
from jax import Array, lax

from fmen_jax.models.layers import Params

# On TPUs the default precision would cost the fold three digits, for no time worth having.
_einsum = partial(jnp.einsum, precision='highest')


def _with_identity(kernel: Array) -> Array:
    """Add a skip connection to a 3x3 convolution: one more at the centre tap, c -> c."""
    return jnp.asarray(kernel).at[1, 1].add(jnp.eye(kernel.shape[2], dtype=kernel.dtype))


def collapse(rrrb: Params) -> Params:
    """One RRRB as one zero-padded 3x3 convolution.

    Args:
      rrrb: expand_conv [1, 1, c, rc], fea_conv [3, 3, rc, rc], reduce_conv [1, 1, rc, c], each with
        `kernel` and `bias`.

    Returns:
      `kernel` [3, 3, c, c] and `bias` [c]. The borders agree because the RRRB fills the border of
      its wide map with the bias of expand_conv, which is what a zero input expands to.
    """
    expand, reduce = rrrb['expand_conv']['kernel'][0, 0], rrrb['reduce_conv']['kernel'][0, 0]
    fea = _with_identity(rrrb['fea_conv']['kernel'])
    bias = _einsum('m,yxmk->k', rrrb['expand_conv']['bias'], fea) + rrrb['fea_conv']['bias']
    kernel = _einsum('im,yxmk,ko->yxio', expand, fea, reduce)
    return {
        'kernel': _with_identity(kernel),
        'bias': _einsum('k,ko->o', bias, reduce) + rrrb['reduce_conv']['bias'],
    }


def _affine(norm: Params, stats: Params, epsilon: float) -> tuple[Array, Array]:
    """A batch norm in eval mode as (gain, shift), [C] each."""
    gain = norm['scale'] * lax.rsqrt(stats['var'] + epsilon)
    return gain, norm['bias'] - stats['mean'] * gain


def _fold_before(conv: Params, gain: Array, shift: Array) -> Params:
    """Batch norm, border of `shift`, VALID convolution -> one zero-padded convolution."""
    return {
        'kernel': conv['kernel'] * gain.reshape(1, 1, -1, 1),
        'bias': conv['bias'] + _einsum('yxio,i->o', conv['kernel'], shift),
    }


def _fold_after(conv: Params, gain: Array, shift: Array) -> Params:
    """Convolution, batch norm -> one convolution."""
    return {
        'kernel': conv['kernel'] * gain.reshape(1, 1, 1, -1),
        'bias': conv['bias'] * gain + shift,
    }


def _fold_erb(erb: Params) -> Params:
    return {name: {'rep_conv': collapse(rrrb)} for name, rrrb in erb.items()}


def _fold_hfab(hfab: Params, stats: Params, epsilon: float) -> Params:
    bn1, bn2, bn3 = (_affine(hfab[n], stats[n], epsilon) for n in ('bn1', 'bn2', 'bn3'))
    folded: Params = {n: _fold_erb(erb) for n, erb in hfab.items() if n.startswith('convs_')}
    folded['squeeze'] = _fold_before(hfab['squeeze'], *bn1)
    folded['excitate'] = _fold_after(_fold_before(hfab['excitate'], *bn2), *bn3)
    return folded


def fold(variables: Params, *, epsilon: float = 1e-5) -> Params:
    """FMEN's train variables -> the variables of its deploy graph.

    Args:
      variables: `params` and `batch_stats` of the train graph.
      epsilon: that of its batch norms.

    Returns:
      {'params': ...} of the deploy graph, whose output is the train graph's in eval mode.
    """
    params, stats = variables['params'], variables['batch_stats']
    folded = dict(params)
    for name, block in params.items():
        if name.startswith('ERBs_'):
            folded[name] = _fold_erb(block)
        elif name in stats:  # only attention branches hold batch norms
            folded[name] = _fold_hfab(block, stats[name], epsilon)
    return {'params': folded}
