// Decodes a picture to RGBA pixels, 8 bits per channel, in sRGB and upright.

const BLOCK = {width: 4096, height: 1024};  // canvases have a limited size

/** @returns {Promise<ImageBitmap>} */
export function decode(file) {
  return createImageBitmap(file, {premultiplyAlpha: 'none'});
}

/**
 * Reads the pixels of a bitmap, and closes it.
 * @returns {{pixels: Uint8ClampedArray, width: number, height: number}}
 */
export function readPixels(bitmap) {
  const {width, height} = bitmap;
  let pixels = readWithCanvas(bitmap);
  // A canvas stores colors multiplied by alpha, which loses those of nearly transparent pixels.
  if (isTransparent(pixels)) pixels = readWithWebGl(bitmap) ?? pixels;
  bitmap.close();
  return {pixels, width, height};
}

function isTransparent(pixels) {
  for (let i = 3; i < pixels.length; i += 4) if (pixels[i] < 255) return true;
  return false;
}

function readWithCanvas(bitmap) {
  const {width, height} = bitmap;
  const columns = Math.min(width, BLOCK.width);
  const rows = Math.min(height, BLOCK.height);
  const context = new OffscreenCanvas(columns, rows).getContext('2d', {willReadFrequently: true});
  const pixels = new Uint8ClampedArray(width * height * 4);
  for (let top = 0; top < height; top += rows) {
    for (let left = 0; left < width; left += columns) {
      context.clearRect(0, 0, columns, rows);
      context.drawImage(bitmap, -left, -top);
      const {data} = context.getImageData(0, 0, columns, rows);
      const used = Math.min(columns, width - left);
      for (let y = 0; y < Math.min(rows, height - top); y++) {
        const row = data.subarray(4 * y * columns, 4 * (y * columns + used));
        pixels.set(row, 4 * ((top + y) * width + left));
      }
    }
  }
  return pixels;
}

/** @returns {Uint8ClampedArray | null} null if there is no WebGL, or the picture is too large */
function readWithWebGl(bitmap) {
  const {width, height} = bitmap;
  const gl = new OffscreenCanvas(1, 1).getContext('webgl2');
  if (!gl || Math.max(width, height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) return null;
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.pixelStorei(gl.UNPACK_PREMULTIPLY_ALPHA_WEBGL, false);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  const texture = gl.getParameter(gl.TEXTURE_BINDING_2D);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
  const pixels = new Uint8ClampedArray(width * height * 4);
  gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
  const failed = gl.getError() !== gl.NO_ERROR;
  gl.getExtension('WEBGL_lose_context')?.loseContext();  // frees its memory now
  return failed ? null : pixels;
}
