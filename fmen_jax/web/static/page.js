// The page: takes a picture, starts and cancels the worker, shows the result.

import {setUpSlider, showComparison} from './slider.js';

const MAX_OUTPUT_PIXELS = 2 ** 28;  // 16384 x 16384: what browsers can still show

const element = (id) => document.getElementById(id);
const number = new Intl.NumberFormat('en-US');

const state = {
  models: [],
  picture: null,  // {file, name, url, width, height}
  reading: null,  // the function that returns the picture that is being read
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

// Files of the page

/** @param {'json' | 'blob'} kind */
async function load(name, kind) {
  try {
    const response = await fetch(name);
    if (!response.ok) throw new Error(`HTTP status ${response.status}`);
    return await response[kind]();
  } catch ({message}) {
    throw new Error(`${name} could not be loaded: ${message}.`);
  }
}

// The picture

/** Takes the file that `source` returns, or promises, as the picture to upscale. */
async function take(source, name) {
  if (state.working || !(await loaded)) return;
  complain('');
  announce('');
  element('result').hidden = true;
  state.reading = source;
  element('start').disabled = true;  // it would upscale the picture before this one
  const {problem, ...picture} = await read(source, name).catch(({message}) => ({problem: message}));
  if (state.reading !== source) {  // another picture was given in the meantime
    URL.revokeObjectURL(picture.url);
    return;
  }
  state.reading = null;
  if (problem) {
    checkSize();
    complain(problem);
    return;
  }
  if (state.picture) URL.revokeObjectURL(state.picture.url);
  state.picture = picture;
  element('picture').textContent = `${name}: ${picture.width} × ${picture.height} pixels`;
  element('settings').hidden = false;
  element('drop').classList.add('small');
  checkSize();
  element('start').focus();
}

/** The picture with its size, upright, from its header alone. */
async function read(source, name) {
  const file = await source();
  const url = URL.createObjectURL(file);
  const image = new Image();
  image.src = url;
  const readable = await new Promise((resolve) => {
    image.onload = () => resolve(image.naturalWidth > 0);
    image.onerror = () => resolve(false);
  });
  if (readable) return {file, name, url, width: image.naturalWidth, height: image.naturalHeight};
  URL.revokeObjectURL(url);
  throw new Error(unreadable(name));
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

async function loadModels() {
  try {
    state.models = await load('models.json', 'json');
  } catch ({message}) {
    complain(`${message} Reload the page.`);
    return false;
  }
  for (const [index, {name, scale}] of state.models.entries()) {
    const label = document.createElement('label');
    const radio = document.createElement('input');
    Object.assign(radio, {type: 'radio', name: 'model', value: index, checked: index === 0});
    label.title = name;
    label.append(radio, `${scale} times`);
    element('factors').append(label);
  }
  return true;
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
    state.worker.onerror = ({message}) => {
      HANDLERS.failed({detail: message ?? 'its files could not be loaded'});
    };
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
  started() {
    startedAt = performance.now();
    announced = 0;
    announce('Upscaling.');
  },

  progress({done, total, provider}) {
    element('provider').textContent = `The network runs with ${provider}.`;
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
    const {name} = state.picture;
    complain({
      picture: unreadable(name),
      size: `${name} is too large for this browser (${detail}). Close other pages and try again, ` +
        'choose a smaller picture, or use the command fmen-jax upscale.',
    }[reason] ?? `The network could not be run: ${detail}. Press Upscale to try again.`);
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
  const [file] = files;
  if (file) take(() => file, file.name || 'pasted.png');
}

function setUpEvents() {
  const drop = element('drop');
  element('file').addEventListener('change', () => {
    takeFirst(element('file').files);
    element('file').value = '';  // the same file can be chosen again
  });
  element('sample').addEventListener('click', () => {
    take(() => load('sample.png', 'blob'), 'sample.png');
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

element('not-started').remove();
setUpSlider();
setUpEvents();
const loaded = loadModels();  // whether it has succeeded
await loaded;
document.body.dataset.ready = 'true';
