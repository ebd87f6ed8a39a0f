// Windows along one axis whose used parts cover it exactly once; as fmen_jax/inference/tiling.py.
//
// An output pixel depends on the pixels within `halo` of it. A window extends beyond its used part
// by the halo, except at the border of the picture, and windows at the border are shifted inward.

/** @returns {{start: number, stop: number, first: number, last: number}[]} window, used part */
export function spans(length, tile, halo) {
  if (length <= tile) return [{start: 0, stop: length, first: 0, last: length}];
  const found = [];
  for (let first = 0; first < length; first = found.at(-1).last) {
    const start = Math.min(Math.max(first - halo, 0), length - tile);
    const stop = start + tile;
    found.push({start, stop, first, last: stop === length ? length : stop - halo});
  }
  return found;
}
