// The worker: receives {file, model}, and answers with messages of the kinds started, progress,
// done and failed. It is terminated to cancel.

import {decode, readPixels} from './decode.js';
import {openNetwork} from './network.js';
import {upscale} from './upscale.js';

const networks = new Map();  // by file: a second picture needs no second start

self.onmessage = async ({data: {file, model}}) => {
  let reason = 'picture';
  try {
    const bitmap = await decode(file);
    reason = 'size';
    const picture = readPixels(bitmap);
    reason = 'network';
    if (!networks.has(model.file)) networks.set(model.file, await openNetwork(model.file));
    const network = networks.get(model.file);
    postMessage({kind: 'started'});
    const report = (done, total) => {
      postMessage({kind: 'progress', done, total, provider: network.provider});
    };
    postMessage({kind: 'done', blob: await upscale(picture, model, network, report)});
  } catch (error) {
    postMessage({kind: 'failed', reason, detail: String(error)});
  }
};
