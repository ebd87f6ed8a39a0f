// Opens a network with ONNX Runtime Web: on the GPU where the browser has WebGPU, else on the CPU.

/**
 * @typedef {{run: (x: Float32Array, height: number, width: number) => Promise<Float32Array>,
 *   provider: string}} Network `run` upscales [3, H, W] in 0..255.
 */

/** @returns {Promise<Network>} continues on the CPU once the GPU has failed */
export async function openNetwork(file) {
  const url = encodeURIComponent(file);
  const continueOnCpu = (error) => {
    console.info(`WebGPU failed, WebAssembly is used instead: ${error}`);
    return open('wasm', url);
  };
  const hasGpu = await navigator.gpu?.requestAdapter().catch(() => null);
  let network = hasGpu ? await open('webgpu', url).catch(continueOnCpu) : await open('wasm', url);
  return {
    get provider() {
      return network.provider;
    },
    async run(...tile) {
      try {
        return await network.run(...tile);
      } catch (error) {
        if (network.provider !== 'WebGPU') throw error;
        network = await continueOnCpu(error);
        return network.run(...tile);
      }
    },
  };
}

/** @returns {Promise<Network>} */
async function open(provider, url) {
  const ort = await import(`./ort/ort.${provider}.min.mjs`);
  ort.env.logLevel = 'error';
  // Threads need memory that is shared, which browsers allow on isolated pages only.
  const threads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, 8) : 1;
  ort.env.wasm.numThreads = threads;
  ort.env.wasm.wasmPaths = new URL('./ort/', import.meta.url).href;
  const session = await ort.InferenceSession.create(url, {executionProviders: [provider]});
  const run = async (x, height, width) => {
    const input = new ort.Tensor('float32', x, [1, 3, height, width]);
    const {sr} = await session.run({lr: input});
    const y = await sr.getData();
    sr.dispose();
    return y;
  };
  await run(new Float32Array(3 * 16 * 16), 16, 16);  // fails here rather than with a picture
  const where = provider === 'webgpu' ? 'WebGPU' : `WebAssembly, threads: ${threads}`;
  return {run, provider: where};
}
