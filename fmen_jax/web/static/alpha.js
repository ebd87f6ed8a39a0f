// Colors under transparent pixels; as `filled` in fmen_jax/images/read.py.

const DISTANCE = 8;

/**
 * Replaces, in place, the colors of hidden pixels (alpha 0) near visible ones by the mean of their
 * neighbors, in the rows from `start` to `stop`. Editors store arbitrary colors there, which a
 * network would blend into the edges. Colors of hidden pixels are not read, so bands of rows may
 * be filled in any order.
 */
export function fillHidden(pixels, width, height, start, stop) {
  const top = Math.max(start - DISTANCE, 0);
  const bottom = Math.min(stop + DISTANCE, height);
  const band = pixels.subarray(4 * top * width, 4 * bottom * width);
  const colors = new Float32Array(band);
  const known = new Uint8Array(band.length / 4);
  let rim = [];
  for (let i = 0; i < known.length; i++) {
    if (band[4 * i + 3]) known[i] = 1;
    else rim.push(i);
  }
  for (let round = 0; round < DISTANCE && rim.length; round++) {
    const fresh = [];
    for (const i of rim) {
      const mean = meanOfKnown(colors, known, i, width);
      if (mean) fresh.push([i, mean]);
    }
    for (const [i, mean] of fresh) {
      known[i] = 1;
      colors.set(mean, 4 * i);
    }
    const around = new Set(fresh.flatMap(([i]) => neighbors(i, width, known.length)));
    rim = [...around].filter((i) => !known[i]);
  }
  const used = colors.subarray(4 * (start - top) * width, 4 * (stop - top) * width);
  pixels.set(used, 4 * start * width);  // which rounds
}

function meanOfKnown(colors, known, i, width) {
  const sum = [0, 0, 0];
  let count = 0;
  for (const j of neighbors(i, width, known.length)) {
    if (!known[j]) continue;
    count++;
    for (let c = 0; c < 3; c++) sum[c] += colors[4 * j + c];
  }
  return count ? sum.map((total) => total / count) : null;
}

/** The pixel and those around it, in a band of `count` pixels. */
function neighbors(i, width, count) {
  const x = i % width;
  const found = [];
  for (let row = i - x - width; row <= i - x + width; row += width) {
    if (row < 0 || row >= count) continue;
    for (let u = Math.max(x - 1, 0); u <= Math.min(x + 1, width - 1); u++) found.push(row + u);
  }
  return found;
}
