/** What is drawn over the images and how: overlays, the steps of the detection, window, downloads. */

import { type Layers, resultAddress } from './api';
import { byId, fill, h } from './dom';
import type { Entry, Options } from './entry';
import type { Model } from './model';
import { CANDIDATE, LESION, SCALES, TRUTH } from './overlay';

/** Formats by their names in the service: what is on the screen, and what it means. */
const FORMATS: Record<string, [word: string, meaning: string]> = {
  json: ['JSON', 'Findings: boxes, scores, contours, sizes'],
  mask: ['Label image', 'PNG in the image\'s own frame: each lesion by its number'],
  overlay: ['Picture', 'PNG with contours'],
  seg: ['DICOM SEG', 'Segmentation'],
  pr: ['DICOM PR', 'Presentation State'],
  sc: ['DICOM SC', 'Secondary Capture'],
  cadsr: ['DICOM CAD SR', 'Mammography CAD report'],
  sr: ['DICOM SR', 'Measurement report'],
  zip: ['Everything (ZIP)', 'All files of all images of the study'],
};

type Switch = 'overlays' | 'contours' | 'boxes' | 'candidates' | 'labels' | 'truth' | 'mask';

export class DisplayPanel {
  private readonly switches = new Map<Switch, HTMLInputElement>();
  private readonly opacity = h('input', { id: 'opacity', type: 'range', min: 0.1, max: 1, step: 0.05 });
  private readonly layers = h('div', { class: 'layers' });
  private readonly layersNote = h('p', { class: 'quiet' });
  private readonly center = h('input', { id: 'window-center', type: 'number', step: 'any' });
  private readonly width = h('input', { id: 'window-width', type: 'number', step: 'any', min: 2 });
  private readonly downloads = h('div', { class: 'downloads' });

  constructor(private readonly model: Model) {
    this.opacity.addEventListener('input', () => model.setOptions({ opacity: Number(this.opacity.value) }));
    for (const input of [this.center, this.width]) input.addEventListener('change', () => this.setWindow());
    byId('display').append(
      h('h2', {}, 'Overlays'),
      h(
        'div',
        { class: 'switches' },
        this.switch('overlays', 'All overlays', 'O'),
        this.switch('contours', 'Contours', 'C', LESION),
        this.switch('boxes', 'Boxes', 'B', LESION),
        this.switch('candidates', 'Other candidates', 'A', CANDIDATE),
        this.switch('labels', 'Numbers and sizes', 'L'),
        this.switch('truth', 'Truth', 'T', TRUTH),
      ),
      h('div', { class: 'field' }, h('label', { for: 'opacity' }, 'Opacity'), this.opacity),
      h('h2', {}, 'How it was found'),
      this.layersNote,
      this.layers,
      h('h2', {}, 'Window'),
      h(
        'div',
        { class: 'field' },
        h('label', { for: 'window-center' }, 'Centre'),
        this.center,
        h('label', { for: 'window-width' }, 'Width'),
        this.width,
      ),
      h('h2', {}, 'Download'),
      this.downloads,
    );
    model.listen((change) => {
      if (['study', 'options', 'selection', 'layout'].includes(change)) this.update();
      if (['view', 'selection', 'layout', 'pointer'].includes(change)) this.showWindow();
    });
    this.update();
  }

  private switch(option: Switch, label: string, key: string, colour?: string): HTMLElement {
    const input = h('input', { type: 'checkbox', id: `show-${option}` });
    input.addEventListener('change', () => this.model.setOptions({ [option]: input.checked } as Partial<Options>));
    this.switches.set(option, input);
    return h('label', { for: input.id }, input, colour ? chip(colour) : null, label, h('kbd', {}, key));
  }

  private update(): void {
    const { model } = this;
    for (const [option, input] of this.switches) input.checked = model.options[option];
    const truth = this.switches.get('truth');
    if (truth) truth.disabled = !model.entries.some((entry) => entry.record.has_truth);
    truth?.parentElement?.classList.toggle('off', truth.disabled);
    this.opacity.value = String(model.options.opacity);
    this.updateLayers();
    this.updateDownloads();
    this.showWindow();
  }

  /** The single scales and the fusion mask: known once they were asked for. */
  private updateLayers(): void {
    const { model } = this;
    const entries = model.visible.filter((entry): entry is Entry => entry?.record.status === 'processed');
    const able = entries.some((entry) => entry.record.has_layers);
    const known = entries.map((entry) => entry.layers).find((layers) => layers !== null && typeof layers === 'object');
    const coming = entries.some((entry) => entry.layers === 'coming');
    const failed = entries
      .map((entry) => entry.layers)
      .find((layers) => typeof layers === 'string' && layers !== 'coming');
    this.layersNote.textContent = coming
      ? 'Computing the detections again …'
      : typeof failed === 'string'
        ? failed
        : 'The detector looks at several scales; the mask Mₛ is where they agree.';
    this.layersNote.classList.toggle('busy', coming);
    const mask = h('input', { type: 'checkbox', id: 'show-mask', 'data-key': 'mask' });
    mask.checked = model.options.mask;
    mask.disabled = !able;
    mask.addEventListener('change', () => model.setOptions({ mask: mask.checked }));
    const all = h('input', { type: 'checkbox', id: 'show-scales', 'data-key': 'scales' });
    const scales = known && typeof known === 'object' ? known.scales : [];
    all.checked = model.options.scales.some((on) => on);
    all.disabled = !able;
    all.addEventListener('change', () => model.setOptions({ scales: Array<boolean>(SCALES.length).fill(all.checked) }));
    const rim = known && typeof known === 'object' ? `white rim: Mₛ ≥ λ = ${known.lambda}` : null;
    fill(
      this.layers,
      h('label', { for: 'show-mask' }, mask, h('span', { class: 'heat' }), 'Fusion mask Mₛ', h('kbd', {}, 'M')),
      model.options.mask && rim ? h('p', { class: 'quiet inner' }, rim) : null,
      h('label', { for: 'show-scales' }, all, 'Detections at single scales', h('kbd', {}, 'D')),
      ...(all.checked ? scales.map((scale, k) => this.scale(k, scale)) : []),
    );
  }

  private scale(k: number, { size: [height, width], detections }: Layers['scales'][number]): HTMLElement {
    const { model } = this;
    const input = h('input', { type: 'checkbox', id: `show-scale-${k}`, 'data-key': `scale-${k}` });
    input.checked = model.options.scales[k] ?? false;
    input.addEventListener('change', () =>
      model.setOptions({ scales: model.options.scales.map((on, i) => (i === k ? input.checked : on)) }),
    );
    const colour = SCALES[k % SCALES.length] as string;
    const drawn = detections.filter(({ score }) => score >= model.options.threshold).length;
    return h(
      'label',
      { for: input.id, class: 'inner' },
      input,
      chip(colour),
      `${width} × ${height}: ${drawn} of ${detections.length} boxes`,
    );
  }

  private showWindow(): void {
    const entry = this.model.activeEntry;
    const window = entry ? this.model.windowFor(entry) : null;
    for (const [input, value] of [
      [this.center, window?.center],
      [this.width, window?.width],
    ] as const) {
      input.disabled = window === null;
      if (document.activeElement !== input)
        input.value = value === undefined ? '' : String(Number(value.toPrecision(6)));
    }
  }

  private setWindow(): void {
    const entry = this.model.activeEntry;
    const [center, width] = [this.center.valueAsNumber, this.width.valueAsNumber];
    if (entry && Number.isFinite(center) && width >= 2) this.model.setWindow(entry, { center, width });
  }

  private updateDownloads(): void {
    const { activeEntry, study } = this.model;
    const links = (kind: 'images' | 'studies', id: string, formats: readonly string[]) =>
      formats.map((format) => {
        const [word, meaning] = FORMATS[format] ?? [format, format];
        return h('a', { href: resultAddress(kind, id, format), download: '', title: meaning }, word);
      });
    const own = activeEntry ? links('images', activeEntry.record.image_id, activeEntry.record.formats) : [];
    fill(
      this.downloads,
      h('p', {}, h('strong', {}, `${activeEntry?.name ?? 'Image'}: `), ...(own.length > 0 ? own : ['nothing yet'])),
      study && study.formats.length > 0
        ? h('p', {}, h('strong', {}, 'Study: '), ...links('studies', study.study_id, study.formats))
        : null,
    );
  }
}

/** A spot of colour beside the name of what is drawn in it. */
function chip(colour: string): HTMLElement {
  const spot = h('span', { class: 'chip' });
  spot.style.background = colour;
  return spot;
}
