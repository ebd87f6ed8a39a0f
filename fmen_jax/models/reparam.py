"""Structural re-parameterization: fold the wide train graph into 3x3 convolutions for inference.

The functions are pure, map dict to dict, and are jittable and differentiable (FMEN, section 3.3).
`collapse` folds one RRRB into one convolution and is also used in training; `fold` converts the
whole network, including batch norms, to its deploy graph. Kernels are [kh, kw, in, out]. Both are
exact, including at image borders, and compute in the dtype of their input.
"""

from functools import partial

import jax.numpy as jnp
from jax import Array, lax

from fmen_jax.models.layers import Params

# On TPUs the default precision would lose three digits in the fold and save no significant time.
_einsum = partial(jnp.einsum, precision='highest')


def _with_identity(kernel: Array) -> Array:
    """Add a skip connection to a 3x3 convolution c -> c: add the identity to the center tap."""
    return jnp.asarray(kernel).at[1, 1].add(jnp.eye(kernel.shape[2], dtype=kernel.dtype))


def collapse(rrrb: Params) -> Params:
    """Return the zero-padded 3x3 convolution that is equivalent to one RRRB.

    Args:
      rrrb: expand_conv [1, 1, c, rc], fea_conv [3, 3, rc, rc], reduce_conv [1, 1, rc, c], each with
        `kernel` and `bias`.

    Returns:
      `kernel` [3, 3, c, c] and `bias` [c]. The borders agree because the RRRB pads its wide map
      with the bias of expand_conv, which is the output of expand_conv for a zero input.
    """
    expand, reduce = rrrb['expand_conv']['kernel'][0, 0], rrrb['reduce_conv']['kernel'][0, 0]
    fea = _with_identity(rrrb['fea_conv']['kernel'])
    bias = _einsum('m,yxmk->k', rrrb['expand_conv']['bias'], fea) + rrrb['fea_conv']['bias']
    kernel = _einsum('im,yxmk,ko->yxio', expand, fea, reduce)
    return {
        'kernel': _with_identity(kernel),
        'bias': _einsum('k,ko->o', bias, reduce) + rrrb['reduce_conv']['bias'],
    }


def affine(norm: Params, stats: Params, epsilon: float) -> tuple[Array, Array]:
    """Return a batch norm in eval mode as (gain, shift), each [C]."""
    gain = norm['scale'] * lax.rsqrt(stats['var'] + epsilon)
    return gain, norm['bias'] - stats['mean'] * gain


def fold_before(conv: Params, gain: Array, shift: Array) -> Params:
    """Fold batch norm, padding with `shift` and VALID convolution into one zero-padded conv."""
    return {
        'kernel': conv['kernel'] * gain.reshape(1, 1, -1, 1),
        'bias': conv['bias'] + _einsum('yxio,i->o', conv['kernel'], shift),
    }


def fold_after(conv: Params, gain: Array, shift: Array) -> Params:
    """Fold a convolution and the batch norm after it into one convolution."""
    return {
        'kernel': conv['kernel'] * gain.reshape(1, 1, 1, -1),
        'bias': conv['bias'] * gain + shift,
    }


def _fold_erb(erb: Params) -> Params:
    return {name: {'rep_conv': collapse(rrrb)} for name, rrrb in erb.items()}


def _fold_hfab(hfab: Params, stats: Params, epsilon: float) -> Params:
    bn1, bn2, bn3 = (affine(hfab[n], stats[n], epsilon) for n in ('bn1', 'bn2', 'bn3'))
    folded: Params = {n: _fold_erb(erb) for n, erb in hfab.items() if n.startswith('convs_')}
    folded['squeeze'] = fold_before(hfab['squeeze'], *bn1)
    folded['excitate'] = fold_after(fold_before(hfab['excitate'], *bn2), *bn3)
    return folded


def fold(variables: Params, *, epsilon: float = 1e-5) -> Params:
    """Return the deploy variables of an FMEN, given the variables of its train graph.

    Args:
      variables: `params` and `batch_stats` of the train graph.
      epsilon: epsilon of the batch norms.

    Returns:
      {'params': ...} of the deploy graph, whose output equals that of the train graph in eval mode.
    """
    params, stats = variables['params'], variables['batch_stats']
    folded = dict(params)
    for name, block in params.items():
        if name.startswith('ERBs_'):
            folded[name] = _fold_erb(block)
        elif name in stats:  # only attention branches hold batch norms
            folded[name] = _fold_hfab(block, stats[name], epsilon)
    return {'params': folded}
