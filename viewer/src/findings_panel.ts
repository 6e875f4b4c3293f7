/** The list of lesions with its threshold, and what was not analysed. */

import type { Lesion } from './api';
import { byId, fill, h } from './dom';
import type { Entry } from './entry';
import type { Model } from './model';
import { sizeOf } from './overlay';
import type { Stage } from './stage';
import { plural } from './words';

export class FindingsPanel {
  private readonly heading = h('h2', {}, 'Lesions');
  private readonly slider = h('input', {
    id: 'threshold',
    type: 'range',
    min: 0,
    max: 1,
    step: 0.01,
    list: 'threshold-default',
    class: 'wide',
  });
  private readonly value = h('input', {
    type: 'number',
    min: 0,
    max: 1,
    step: 0.01,
    'aria-label': 'Score at least, as a number',
  });
  private readonly mark = h('option');
  private readonly reset = h('button', { type: 'button', title: 'Where every lesion reported shows' });
  private readonly summary = h('p', { class: 'quiet' });
  private readonly list = h('div', { class: 'lesions' });
  private readonly others = h('ul', { class: 'images-without' });

  constructor(
    private readonly model: Model,
    private readonly stage: Stage,
    explain: () => void,
  ) {
    for (const input of [this.slider, this.value])
      input.addEventListener('input', () => {
        if (input.value !== '' && input.validity.valid) model.setOptions({ threshold: input.valueAsNumber });
      });
    this.value.addEventListener('blur', () => this.update());
    this.reset.addEventListener('click', () => model.setOptions({ threshold: model.asReported }));
    const more = h('button', { type: 'button', class: 'link', onclick: explain }, 'More');
    byId('findings').append(
      this.heading,
      h('p', { class: 'quiet' }, 'Lesions are outlined; candidates are other boxes with a score. ', more),
      h('div', { class: 'field' }, h('label', { for: 'threshold' }, 'Score at least'), this.value, this.reset),
      this.slider,
      h('datalist', { id: 'threshold-default' }, this.mark),
      this.summary,
      h('div', { class: 'listing' }, this.list, this.others),
    );
    model.listen((change) => {
      if (['study', 'findings', 'options', 'selection'].includes(change)) this.update();
    });
  }

  private update(): void {
    const { model } = this;
    const { threshold } = model.options;
    const lesions = model.lesions;
    const weaker = model.entries.reduce((sum, entry) => sum + model.candidatesOf(entry).length, 0);
    const all = model.entries.reduce((sum, entry) => sum + (entry.findings?.lesions.length ?? 0), 0);
    const analysed = model.entries.some((entry) => entry.findings?.status === 'processed');
    const count = lesions.length < all ? `${lesions.length} of ${all}` : `${all}`;
    this.heading.textContent = analysed ? `Lesions (${count})` : 'Lesions'; // none is not nought
    this.slider.value = String(threshold);
    if (document.activeElement !== this.value) this.value.value = threshold.toFixed(2);
    this.mark.value = String(model.asReported);
    this.reset.textContent = `Default ${model.asReported.toFixed(2)}`;
    this.reset.disabled = threshold === model.asReported;
    this.summary.textContent = [
      lesions.length < all ? `${all - lesions.length} below the threshold. ` : '',
      weaker > 0 ? `${plural(weaker, 'other candidate')}, dashed.` : '',
    ].join('');
    const head = h(
      'div',
      { class: 'row head' },
      ...['View', 'No.', 'Score', 'Size: long × short'].map((text) => h('span', {}, text)),
    );
    fill(this.list, lesions.length > 0 ? head : null, ...lesions.map(({ entry, lesion }) => this.row(entry, lesion)));
    fill(this.others, ...model.entries.flatMap((entry) => this.without(entry) ?? []));
  }

  private row(entry: Entry, lesion: Lesion): HTMLElement {
    const { selection } = this.model;
    const imageId = entry.record.image_id;
    const chosen = selection?.imageId === imageId && selection.lesion === lesion.id;
    const size = sizeOf(lesion) ?? `${lesion.area_px} px² (spacing unknown)`;
    const guessed = lesion.outline === 'ellipse';
    return h(
      'button',
      {
        class: 'row lesion',
        type: 'button',
        'data-key': `${imageId}/${lesion.id}`,
        'aria-pressed': chosen ? 'true' : 'false',
        title: guessed ? 'No contour was found in the box; its ellipse stands in' : 'Show this lesion',
        onclick: () => this.stage.goTo({ imageId, lesion: lesion.id }),
      },
      h('span', { class: 'view' }, entry.name),
      h('span', {}, String(lesion.id)),
      h('span', {}, lesion.score.toFixed(2)),
      h('span', { class: 'size' }, guessed ? `${size} (ellipse)` : size),
    );
  }

  /** A line for an image that has no lesion in the list: why that is so. */
  private without(entry: Entry): HTMLElement | null {
    const { status, reason } = entry.record;
    if (status === 'rejected' || status === 'failed') {
      return h('li', { class: 'unusable' }, h('strong', {}, `${entry.name}: not analysed, ${status}. `), reason ?? '');
    }
    if (status === 'pending') return h('li', { class: 'waiting' }, `${entry.name}: not analysed yet${reason ? `; ${reason}` : ''}`);
    if (entry.problem && entry.record.has_pixels) return h('li', { class: 'unusable' }, h('strong', {}, `${entry.name}: `), entry.problem);
    if (!entry.findings || this.model.lesionsOf(entry).length > 0) return null;
    const none = entry.findings.lesions.length === 0 ? 'analysed, no lesion found' : 'no lesion above the threshold';
    return h('li', {}, `${entry.name}: ${none}`);
  }
}
