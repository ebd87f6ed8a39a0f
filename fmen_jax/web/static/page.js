// The page: takes a picture, starts and cancels the worker, shows the result.

import {setUpSlider, showComparison} from './slider.js';

const MAX_OUTPUT_PIXELS = 2 ** 28;  // 16384 x 16384: what browsers can still show

const element = (id) => document.getElementById(id);
const number = new Intl.NumberFormat('en-US');

const state = {
  models: [],
  picture: null,  // {file, name, url, width, height}
  reading: null,  // the file whose size is being read
  worker: null,
  working: false,
  resultUrl: null,
};

// Messages

function announce(text) {
  element('status').textContent = text;
}

function complain(text) {
  element('error').textContent = text;
  element('error').hidden = !text;
}

// The picture

async function take(file, name = file.name || 'pasted.png') {
  if (state.working) return;
  complain('');
  announce('');
  element('result').hidden = true;
  state.reading = file;
  element('start').disabled = true;  // it would upscale the picture before this one
  const url = URL.createObjectURL(file);
  const size = await readSize(url);
  if (state.reading !== file) {  // another picture was given in the meantime
    URL.revokeObjectURL(url);
    return;
  }
  state.reading = null;
  if (!size) {
    URL.revokeObjectURL(url);
    checkSize();
    complain(unreadable(name));
    return;
  }
  if (state.picture) URL.revokeObjectURL(state.picture.url);
  state.picture = {file, name, url, ...size};
  element('picture').textContent = `${name}: ${size.width} × ${size.height} pixels`;
  element('settings').hidden = false;
  element('drop').classList.add('small');
  checkSize();
  element('start').focus();
}

/** The size of a picture, upright, from its header alone; null if it cannot be read. */
async function readSize(url) {
  const image = new Image();
  image.src = url;
  const loaded = await new Promise((resolve) => {
    image.onload = () => resolve(image.naturalWidth > 0);
    image.onerror = () => resolve(false);
  });
  return loaded ? {width: image.naturalWidth, height: image.naturalHeight} : null;
}

function unreadable(name) {
  return `${name} could not be read as a picture. The file is damaged, or it has a format that ` +
    'this browser does not support. PNG, JPEG and WebP are supported by all browsers.';
}

// The settings

function model() {
  const chosen = document.querySelector('input[name="model"]:checked');
  return state.models[Number(chosen.value)];
}

function outputSize() {
  return {
    width: state.picture.width * model().scale,
    height: state.picture.height * model().scale,
  };
}

/** Says before work starts whether the output would be too large. */
function checkSize() {
  if (!state.picture) return;
  const {width, height} = outputSize();
  const fits = width * height <= MAX_OUTPUT_PIXELS;
  element('size').textContent = `Output: ${width} × ${height} pixels`;
  element('start').disabled = !fits || state.reading !== null;
  complain(fits ? '' :
    `The output would have ${number.format(width * height)} pixels; this page makes at most ` +
    `${number.format(MAX_OUTPUT_PIXELS)}. Choose a smaller factor, or use the command ` +
    'fmen-jax upscale, which has no such limit.');
}

function listModels(models) {
  state.models = models;
  for (const [index, {name, scale}] of models.entries()) {
    const label = document.createElement('label');
    const radio = document.createElement('input');
    Object.assign(radio, {type: 'radio', name: 'model', value: index, checked: index === 0});
    label.title = name;
    label.append(radio, `${scale} times`);
    element('factors').append(label);
  }
}

// The work

function setWorking(working) {
  state.working = working;
  for (const id of ['start', 'factors', 'file', 'sample']) element(id).disabled = working;
  element('cancel').hidden = !working;
  element('work').hidden = !working;
  element('progress').value = 0;
  element('remaining').textContent = '';
}

function start() {
  complain('');
  element('result').hidden = true;
  setWorking(true);
  announce('Starting the network.');
  element('cancel').focus();
  if (!state.worker) {
    state.worker = new Worker('worker.js', {type: 'module'});
    state.worker.onmessage = ({data}) => HANDLERS[data.kind](data);
    state.worker.onerror = (event) => HANDLERS.failed({detail: event.message});
  }
  state.worker.postMessage({file: state.picture.file, model: model()});
}

function stop() {
  state.worker?.terminate();
  state.worker = null;
  setWorking(false);
  element('start').focus();
}

let startedAt = 0;
let announced = 0;

const HANDLERS = {
  started({provider}) {
    startedAt = performance.now();
    announced = 0;
    element('provider').textContent = `The network runs with ${provider}.`;
    announce('Upscaling.');
  },

  progress({done, total}) {
    element('progress').value = done / total;
    element('remaining').textContent = `Tile ${done} of ${total}${timeLeft(done, total)}`;
    const quarter = Math.floor((4 * done) / total);
    if (quarter > announced && quarter < 4) {  // screen readers read these aloud
      announced = quarter;
      announce(`Upscaling: ${25 * quarter} percent done.`);
    }
  },

  done({blob}) {
    setWorking(false);
    if (state.resultUrl) URL.revokeObjectURL(state.resultUrl);
    state.resultUrl = URL.createObjectURL(blob);
    const {width, height} = outputSize();
    element('download').href = state.resultUrl;
    element('download').download =
      `${state.picture.name.replace(/\.[^.]*$/, '')}_x${model().scale}.png`;
    showComparison(state.picture.url, state.resultUrl, width, height);
    element('result').hidden = false;
    const seconds = ((performance.now() - startedAt) / 1000).toFixed(1);
    announce(`Done in ${seconds} seconds: ${width} × ${height} pixels.`);
    element('download').focus({preventScroll: true});
    element('result').scrollIntoView({block: 'nearest'});
  },

  failed({reason, detail}) {
    stop();
    announce('');
    complain(reason === 'picture' ? unreadable(state.picture.name) :
      `The network could not be run: ${detail}. Reload the page to try again.`);
  },
};

function timeLeft(done, total) {
  if (done < 2) return '';
  const seconds = (((performance.now() - startedAt) / done) * (total - done)) / 1000;
  if (seconds < 90) return `, about ${Math.ceil(seconds)} seconds left`;
  return `, about ${Math.ceil(seconds / 60)} minutes left`;
}

// Events

function takeFirst(files) {
  if (files.length) take(files[0]);
}

function setUpEvents() {
  const drop = element('drop');
  element('file').addEventListener('change', () => {
    takeFirst(element('file').files);
    element('file').value = '';  // the same file can be chosen again
  });
  element('sample').addEventListener('click', async () => {
    take(await (await fetch('sample.png')).blob(), 'sample.png');
  });
  document.addEventListener('paste', (event) => takeFirst(event.clipboardData.files));
  document.addEventListener('dragover', (event) => {
    event.preventDefault();
    drop.classList.add('over');
  });
  document.addEventListener('dragleave', () => drop.classList.remove('over'));
  document.addEventListener('drop', (event) => {
    event.preventDefault();
    drop.classList.remove('over');
    takeFirst(event.dataTransfer.files);
  });
  element('factors').addEventListener('change', checkSize);
  element('settings').addEventListener('submit', (event) => {
    event.preventDefault();
    start();
  });
  element('cancel').addEventListener('click', () => {
    stop();
    announce('Canceled.');
  });
}

setUpSlider();
listModels(await (await fetch('models.json')).json());
setUpEvents();
document.body.dataset.ready = 'true';
