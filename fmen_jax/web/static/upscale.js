// Upscales RGBA pixels tile by tile and writes them as a PNG; as fmen_jax/inference/upscaler.py.

import {fillHidden} from './alpha.js';
import {PngWriter} from './png.js';
import {spans} from './tiling.js';

const TILE = 256;

/**
 * @param {{pixels: Uint8ClampedArray, width: number, height: number}} picture
 * @param {{scale: number, halo: number}} model halo: the receptive radius, for exact tiles
 * @param {import('./network.js').Network} network
 * @param {(done: number, total: number) => void} report called after each tile
 * @returns {Promise<Blob>} the PNG
 */
export async function upscale(picture, {scale, halo}, network, report) {
  const {pixels, width, height} = picture;
  const {gray, alpha} = examine(pixels);
  const passes = [{read: [0, 1, 2], write: gray ? null : [0, 1, 2]}];
  if (alpha === null) passes.push({read: [3, 3, 3], write: [3]});
  const tile = Math.max(TILE, 2 * halo + 128);
  const rows = spans(height, tile, halo);
  const columns = spans(width, tile, halo);
  const total = rows.length * columns.length * passes.length;
  const channels = alpha === 255 ? 3 : 4;
  const png = new PngWriter(width * scale, height * scale, channels);
  let done = 0;
  report(done, total);
  for (const row of rows) {
    if (alpha === null) fillHidden(pixels, width, height, row.start, row.stop);
    const band = new Uint8ClampedArray((row.last - row.first) * scale * width * scale * channels);
    if (alpha !== null && channels === 4) for (let i = 3; i < band.length; i += 4) band[i] = alpha;
    for (const {read, write} of passes) {
      for (const column of columns) {
        const x = cut(pixels, width, row, column, read);
        const y = await network.run(x, row.stop - row.start, column.stop - column.start);
        paste(y, band, {row, column, scale, width, channels, write});
        report(++done, total);
      }
    }
    await png.write(band);
  }
  return png.finish();
}

/** Whether all pixels are gray, and the alpha of all pixels, which is null if it varies. */
function examine(pixels) {
  let gray = true;
  let alpha = pixels[3];
  for (let i = 0; i < pixels.length; i += 4) {
    if (pixels[i] !== pixels[i + 1] || pixels[i] !== pixels[i + 2]) gray = false;
    if (pixels[i + 3] !== alpha) alpha = null;
    if (!gray && alpha === null) break;
  }
  return {gray, alpha};
}

/** Three channels of a window as [3, H, W]. */
function cut(pixels, width, row, column, read) {
  const tileWidth = column.stop - column.start;
  const area = (row.stop - row.start) * tileWidth;
  const x = new Float32Array(3 * area);
  for (let y = row.start, i = 0; y < row.stop; y++) {
    for (let u = column.start; u < column.stop; u++, i++) {
      const pixel = 4 * (y * width + u);
      for (let c = 0; c < 3; c++) x[c * area + i] = pixels[pixel + read[c]];
    }
  }
  return x;
}

/**
 * Copies the used part of a window's output [3, s H, s W] to the rows of the band. The band rounds
 * and clamps. One channel to write is the mean of the three, as is `write` null, for all colors.
 */
function paste(y, band, {row, column, scale, width, channels, write}) {
  const tileWidth = (column.stop - column.start) * scale;
  const area = y.length / 3;
  const top = (row.first - row.start) * scale;
  const left = (column.first - column.start) * scale;
  const usedWidth = (column.last - column.first) * scale;
  const usedHeight = (row.last - row.first) * scale;
  for (let v = 0; v < usedHeight; v++) {
    let from = (top + v) * tileWidth + left;
    let to = (v * width * scale + column.first * scale) * channels;
    for (let u = 0; u < usedWidth; u++, from++, to += channels) {
      if (write?.length === 3) {
        for (let c = 0; c < 3; c++) band[to + c] = y[c * area + from];
      } else {
        const mean = (y[from] + y[area + from] + y[2 * area + from]) / 3;
        for (const c of write ?? [0, 1, 2]) band[to + c] = mean;
      }
    }
  }
}
