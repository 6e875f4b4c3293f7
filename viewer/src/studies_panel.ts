/** The studies there are, and what became of each image. */

import type { ImageRecord, Study } from './api';
import { byId, fill, h } from './dom';
import { inOrder, namesOf } from './hanging';
import type { Model } from './model';

export class StudiesPanel {
  constructor(private readonly model: Model) {
    model.listen((change) => {
      if (['studies', 'study', 'layout', 'selection'].includes(change)) this.update();
    });
  }

  private update(): void {
    const { model } = this;
    byId('study-name').textContent = model.study?.label ?? '';
    fill(
      byId('studies'),
      h('h2', {}, `Studies (${model.studies.length})`),
      model.studies.length === 0 ? h('p', { class: 'quiet' }, 'None yet. Drop mammograms anywhere to add some.') : null,
      ...model.studies.map((study) => this.study(study)),
    );
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
        'aria-expanded': open ? 'true' : 'false',
        onclick: () => void this.model.open(study.study_id),
      },
      h('span', {}, study.label),
      open ? null : h('span', { class: 'quiet' }, tally(images)),
    );
    return h(
      'div',
      {},
      title,
      open ? h('ul', {}, ...images.map((image, k) => h('li', {}, this.image(image, names[k] ?? image.name)))) : null,
    );
  }

  private image(image: ImageRecord, name: string): HTMLElement {
    const active = this.model.active === image.image_id;
    return h(
      'button',
      {
        type: 'button',
        class: `image-entry ${image.status}`,
        'data-key': image.image_id,
        'aria-pressed': active ? 'true' : 'false',
        title: image.name,
        onclick: () => this.model.setLayout(this.model.layout === 'pair' ? 'pair' : 'one', image.image_id),
      },
      h('span', {}, name),
      h('span', { class: 'state' }, stateOf(image)),
    );
  }
}

function stateOf(image: ImageRecord): string {
  if (image.status !== 'processed')
    return { rejected: 'rejected', failed: 'failed', pending: 'not analysed' }[image.status];
  if (image.lesions === null) return 'analysed';
  return image.lesions === 0 ? 'none found' : `${image.lesions} ${image.lesions === 1 ? 'lesion' : 'lesions'}`;
}

function tally(images: readonly ImageRecord[]): string {
  const [unusable, waiting] = [
    images.filter(({ status }) => status === 'rejected' || status === 'failed').length,
    images.filter(({ status }) => status === 'pending').length,
  ];
  const parts = [`${images.length} ${images.length === 1 ? 'image' : 'images'}`];
  if (unusable > 0) parts.push(`${unusable} unusable`);
  if (waiting > 0) parts.push(`${waiting} waiting`);
  return parts.join(', ');
}
