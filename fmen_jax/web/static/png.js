// Writes a PNG row by row. A canvas would limit the size and lose colors of transparent pixels.

const CRC_TABLE = Uint32Array.from({length: 256}, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = CRC_TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}

function chunk(type, data) {
  const bytes = new Uint8Array(data.length + 12);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, data.length);
  for (let i = 0; i < 4; i++) bytes[4 + i] = type.charCodeAt(i);
  bytes.set(data, 8);
  view.setUint32(data.length + 8, crc32(bytes.subarray(4, data.length + 8)));
  return bytes;
}

export class PngWriter {
  /** @param {number} channels 3 (RGB) or 4 (RGBA) */
  constructor(width, height, channels) {
    this.channels = channels;
    this.rowBytes = width * channels;
    this.above = new Uint8Array(this.rowBytes);
    const header = new Uint8Array(13);
    const view = new DataView(header.buffer);
    view.setUint32(0, width);
    view.setUint32(4, height);
    header.set([8, channels === 4 ? 6 : 2, 0, 0, 0], 8);
    this.parts = [new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]), chunk('IHDR', header)];
    this.parts.push(chunk('sRGB', new Uint8Array([0])));
    const deflate = new CompressionStream('deflate');
    this.deflate = deflate.writable.getWriter();
    this.collected = this.#collect(deflate.readable);
  }

  async #collect(stream) {
    for (const reader = stream.getReader(); ;) {
      const {done, value} = await reader.read();
      if (done) return;
      this.parts.push(new Blob([chunk('IDAT', value)]));  // the browser may move blobs to disk
    }
  }

  /** @param {Uint8ClampedArray} rows whole rows */
  async write(rows) {
    const {rowBytes, channels} = this;
    const count = rows.length / rowBytes;
    const filtered = new Uint8Array(rows.length + count);
    for (let y = 0; y < count; y++) {
      const row = rows.subarray(y * rowBytes, (y + 1) * rowBytes);
      filtered[y * (rowBytes + 1)] = 4;
      paeth(row, this.above, channels, filtered.subarray(y * (rowBytes + 1) + 1));
      this.above = row;
    }
    this.above = this.above.slice();
    await this.deflate.write(filtered);
  }

  /** @returns {Promise<Blob>} */
  async finish() {
    await this.deflate.close();
    await this.collected;
    this.parts.push(chunk('IEND', new Uint8Array(0)));
    return new Blob(this.parts, {type: 'image/png'});
  }
}

/** The filter 'Paeth' of the PNG specification: each byte minus one of three neighbors. */
function paeth(row, above, channels, out) {
  for (let i = 0; i < row.length; i++) {
    const left = i < channels ? 0 : row[i - channels];
    const up = above[i];
    const corner = i < channels ? 0 : above[i - channels];
    const estimate = left + up - corner;
    const toLeft = Math.abs(estimate - left);
    const toUp = Math.abs(estimate - up);
    const toCorner = Math.abs(estimate - corner);
    const nearest = toLeft <= toUp && toLeft <= toCorner ? left : toUp <= toCorner ? up : corner;
    out[i] = row[i] - nearest;
  }
}
