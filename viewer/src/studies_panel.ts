/** The studies there are, and what became of each image. */

import type { ImageRecord, Study } from './api';
import { byId, fill, h } from './dom';
import { inOrder, namesOf } from './hanging';
import type { Model } from './model';
import { plural, stateOf } from './words';

const SEARCH_FROM = 12; // studies; fewer are seen at a glance
const LONG = 40; // characters of a name
const MOST = 100; // that are listed

export class StudiesPanel {
  private readonly heading = h('h2');
  private readonly search = h('input', {
    type: 'text',
    'aria-label': 'Search studies',
    placeholder: 'Search',
    hidden: true,
  });
  private readonly list = h('div');

  constructor(private readonly model: Model) {
    byId('studies').append(this.heading, this.search, this.list);
    this.search.addEventListener('input', () => this.update());
    model.listen((change) => {
      if (change === 'studies' || change === 'study') this.update();
      if (['layout', 'selection', 'options', 'findings'].includes(change)) this.showState();
    });
  }

  private update(): void {
    const { studies, study: open } = this.model;
    byId('study-name').textContent = short(open?.label ?? '');
    byId('study-name').title = open?.label ?? '';
    this.heading.textContent = `Studies (${studies.length})`;
    this.search.hidden = studies.length < SEARCH_FROM;
    const wanted = this.search.value.trim().toLowerCase();
    const found = studies.filter(({ label }) => label.toLowerCase().includes(wanted));
    const listed = found.slice(0, MOST);
    if (open && found.includes(open) && !listed.includes(open)) listed.unshift(open);
    const rest = found.length - listed.length;
    fill(
      this.list,
      studies.length === 0 ? h('p', { class: 'quiet' }, 'None yet. Drop mammograms anywhere to add some.') : null,
      ...listed.map((study) => this.study(study)),
      rest > 0 ? h('p', { class: 'quiet' }, `… and ${rest} more: search for them.`) : null,
    );
    this.showState();
  }

  private study(study: Study): HTMLElement {
    const open = study.study_id === this.model.study?.study_id;
    const images = inOrder(study.images.flatMap((id) => this.model.images.get(id) ?? []));
    const names = namesOf(images);
    const title = h(
      'button',
      {
        type: 'button',
        class: 'study',
        'data-key': study.study_id,
        title: study.label,
        'aria-expanded': open ? 'true' : 'false',
        onclick: () => void this.model.open(study.study_id),
      },
      h('span', {}, ...breakable(short(study.label))),
      open ? null : h('span', { class: 'quiet' }, tally(images)),
    );
    const entries = images.map((image, k) => h('li', {}, this.image(image, names[k] ?? image.name)));
    return h('div', {}, title, open ? h('ul', {}, ...entries) : null);
  }

  private image(image: ImageRecord, name: string): HTMLElement {
    return h(
      'button',
      {
        type: 'button',
        class: `image-entry ${image.status}`,
        'data-key': image.image_id,
        title: image.name,
        onclick: () => this.model.setLayout(this.model.layout === 'pair' ? 'pair' : 'one', image.image_id),
      },
      h('span', {}, name),
      h('span', { class: 'state' }),
    );
  }

  /** Which image is the active one, and how many of its lesions are shown. */
  private showState(): void {
    const { model } = this;
    for (const button of this.list.querySelectorAll('.image-entry')) {
      const id = button.getAttribute('data-key') ?? '';
      button.setAttribute('aria-pressed', String(id === model.active));
      const [image, entry] = [model.images.get(id), model.entry(id)];
      const shown = entry?.findings ? model.lesionsOf(entry).length : null;
      if (image && button.lastChild) button.lastChild.textContent = stateOf(image, shown);
    }
  }
}

/** The end of a long name, which tells most. */
function short(name: string): string {
  const parts = name.split('/');
  return name.length > LONG && parts.length > 2 ? `…/${parts.slice(-2).join('/')}` : name;
}

/** A name that may be broken where its words end. */
function breakable(name: string): (Node | string)[] {
  return name.split(/(?<=[/_\-. ])/).flatMap((word) => [word, document.createElement('wbr')]);
}

function tally(images: readonly ImageRecord[]): string {
  const [unusable, waiting] = [
    images.filter(({ status }) => status === 'rejected' || status === 'failed').length,
    images.filter(({ status }) => status === 'pending').length,
  ];
  const parts = [plural(images.length, 'image')];
  if (unusable > 0) parts.push(`${unusable} unusable`);
  if (waiting > 0) parts.push(`${waiting} waiting`);
  return parts.join(', ');
}
