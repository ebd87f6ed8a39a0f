// Colors under transparent pixels; as `filled` in fmen_jax/images/read.py.

const DISTANCE = 8;

/**
 * Replaces, in place, the colors of hidden pixels (alpha 0) near visible ones by the mean of their
 * neighbors. Editors store arbitrary colors there, which a network would blend into the edges.
 */
export function fillHidden(pixels, width, height) {
  const colors = new Float32Array(pixels.length);
  const known = new Uint8Array(width * height);
  let rim = [];
  for (let i = 0; i < known.length; i++) {
    if (pixels[4 * i + 3]) {
      known[i] = 1;
      for (let c = 0; c < 3; c++) colors[4 * i + c] = pixels[4 * i + c];
    } else {
      rim.push(i);
    }
  }
  if (rim.length === known.length) return;
  const filled = [];
  for (let round = 0; round < DISTANCE && rim.length; round++) {
    const fresh = [];
    for (const i of rim) {
      const mean = meanOfKnown(colors, known, i, width, height);
      if (mean) fresh.push([i, mean]);
    }
    for (const [i, mean] of fresh) {
      known[i] = 1;
      colors.set(mean, 4 * i);
      filled.push(i);
    }
    rim = rim.filter((i) => !known[i]);
  }
  for (const i of filled) for (let c = 0; c < 3; c++) pixels[4 * i + c] = colors[4 * i + c];
}

function meanOfKnown(colors, known, i, width, height) {
  const x = i % width;
  const y = (i - x) / width;
  const sum = [0, 0, 0];
  let count = 0;
  for (let v = Math.max(y - 1, 0); v <= Math.min(y + 1, height - 1); v++) {
    for (let u = Math.max(x - 1, 0); u <= Math.min(x + 1, width - 1); u++) {
      const j = v * width + u;
      if (!known[j]) continue;
      count++;
      for (let c = 0; c < 3; c++) sum[c] += colors[4 * j + c];
    }
  }
  return count ? sum.map((total) => total / count) : null;
}
