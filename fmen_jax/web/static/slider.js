// The comparison of before and after: a range input, and the pointer on the picture itself.

const element = (id) => document.getElementById(id);

function move(percent) {
  element('split').value = percent;
  element('viewer').style.setProperty('--split', `${percent}%`);
}

function follow(event) {
  if (element('full').checked || !(event.buttons & 1)) return;
  const {left, width} = element('viewer').getBoundingClientRect();
  move(Math.min(Math.max((100 * (event.clientX - left)) / width, 0), 100));
}

export function setUpSlider() {
  const viewer = element('viewer');
  element('split').addEventListener('input', () => move(element('split').value));
  viewer.addEventListener('pointerdown', follow);
  viewer.addEventListener('pointermove', follow);
  viewer.addEventListener('dragstart', (event) => event.preventDefault());
  element('full').addEventListener('change', () => {
    element('frame').classList.toggle('full', element('full').checked);
  });
}

/** Shows two pictures of one shape; `width` and `height` are those of the second, in pixels. */
export function showComparison(before, after, width, height) {
  const viewer = element('viewer');
  viewer.style.setProperty('--ratio', `${width / height}`);
  viewer.style.setProperty('--width', `${width / devicePixelRatio}px`);
  element('before').src = before;
  element('after').src = after;
  move(50);
}
