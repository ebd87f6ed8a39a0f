// The worker: receives {file, model}, and answers with messages of the kinds started, progress,
// done and failed. It is terminated to cancel.

import {decode} from './decode.js';
import {openNetwork} from './network.js';
import {upscale} from './upscale.js';

const networks = new Map();  // by file: a second picture needs no second start

self.onmessage = async ({data: {file, model}}) => {
  let picture;
  try {
    picture = await decode(file);
  } catch (error) {
    postMessage({kind: 'failed', reason: 'picture', detail: String(error)});
    return;
  }
  try {
    if (!networks.has(model.file)) networks.set(model.file, await openNetwork(model.file));
    const {run, provider} = networks.get(model.file);
    postMessage({kind: 'started', provider});
    const report = (done, total) => postMessage({kind: 'progress', done, total});
    postMessage({kind: 'done', blob: await upscale(picture, model, run, report)});
  } catch (error) {
    postMessage({kind: 'failed', reason: 'network', detail: String(error)});
  }
};
