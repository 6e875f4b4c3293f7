/** What is drawn over the images and how: overlays, window, the steps of the detection. */

import type { Layers } from './api';
import { byId, fill, h } from './dom';
import type { Entry, Options } from './entry';
import type { Model } from './model';
import { CANDIDATE, LESION, SCALES, TRUTH } from './overlay';
import type { Window } from './window';

type Scale = Layers['scales'][number];

const NO_TRUTH = 'True contours come with a data set: mammoseg serve --truth DATASET';

type Switch = 'overlays' | 'contours' | 'boxes' | 'candidates' | 'labels' | 'truth' | 'mask';

export class DisplayPanel {
  private readonly switches = new Map<Switch, HTMLInputElement>();
  private readonly opacity = h('input', { id: 'opacity', type: 'range', min: 0.1, max: 1, step: 0.05 });
  private readonly layers = h('div', { class: 'layers' });
  private readonly layersNote = h('p', { class: 'quiet note' });
  private readonly center = h('input', { id: 'window-center', type: 'number', step: 'any' });
  private readonly width = h('input', { id: 'window-width', type: 'number', step: 'any', min: 2 });
  private readonly windowHeading = h('h2');
  private readonly truthMissing = h('span', {}, '(none for this study)');

  constructor(private readonly model: Model) {
    this.opacity.addEventListener('input', () => model.setOptions({ opacity: Number(this.opacity.value) }));
    this.center.addEventListener('change', () => this.setWindow({ center: this.center.valueAsNumber }));
    this.width.addEventListener('change', () => this.setWindow({ width: this.width.valueAsNumber }));
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
        this.switch('truth', 'Truth', 'T', TRUTH, this.truthMissing),
      ),
      h('div', { class: 'field' }, h('label', { for: 'opacity' }, 'Opacity'), this.opacity),
      this.windowHeading,
      h(
        'div',
        { class: 'field' },
        h('label', { for: 'window-center' }, 'Centre'),
        this.center,
        h('label', { for: 'window-width' }, 'Width'),
        this.width,
      ),
      h('h2', {}, 'How it was found'), // below what it would move when it grows
      this.layersNote,
      this.layers,
    );
    model.listen((change) => {
      if (['study', 'options', 'selection', 'layout'].includes(change)) this.update();
      if (['view', 'selection', 'layout', 'pointer'].includes(change)) this.showWindow();
    });
    this.update();
  }

  private switch(option: Switch, label: string, key: string, colour?: string, more: Node | null = null): HTMLElement {
    const input = h('input', { type: 'checkbox', id: `show-${option}` });
    input.addEventListener('change', () => this.model.setOptions({ [option]: input.checked } as Partial<Options>));
    this.switches.set(option, input);
    return h('label', { for: input.id }, input, colour ? chip(colour) : null, label, more, h('kbd', {}, key));
  }

  private update(): void {
    const { model } = this;
    const { overlays } = model.options;
    const hasTruth = model.entries.some((entry) => entry.record.has_truth);
    for (const [option, input] of this.switches) {
      input.checked = model.options[option];
      input.disabled = (option !== 'overlays' && !overlays) || (option === 'truth' && !hasTruth);
      const label = input.parentElement as HTMLElement;
      label.classList.toggle('off', input.disabled);
      label.title = option === 'truth' && !hasTruth ? NO_TRUTH : input.disabled ? 'All overlays are off' : '';
    }
    this.truthMissing.hidden = hasTruth || model.entries.length === 0;
    this.opacity.value = String(model.options.opacity);
    this.opacity.disabled = !overlays;
    this.updateLayers();
    this.showWindow();
  }

  /** The single scales and the fusion mask: known once they were asked for. */
  private updateLayers(): void {
    const { model } = this;
    const { options, activeEntry } = model;
    const entries = model.visible.filter((entry): entry is Entry => entry?.record.status === 'processed');
    const able = entries.some((entry) => entry.record.has_layers);
    const known = entries.map(({ layers }) => layers).find((layers) => layers !== null && typeof layers === 'object');
    const own = typeof activeEntry?.layers === 'object' ? activeEntry.layers : null;
    const coming = entries.some((entry) => entry.layers === 'coming');
    const failed = entries.map(({ layers }) => layers).find((layers) => typeof layers === 'string' && layers !== 'coming');
    this.layersNote.textContent = coming
      ? 'Computing the detections again …'
      : typeof failed === 'string'
        ? failed
        : entries.length > 0 && !able
          ? 'Not to be had here: it takes the image files and the weights.'
          : 'The detector looks at several scales; the mask Mₛ is where they agree.';
    this.layersNote.classList.toggle('busy', coming);
    const box = (name: string, checked: boolean, change: (on: boolean) => void): HTMLInputElement => {
      const input = h('input', { type: 'checkbox', id: `show-${name}`, 'data-key': name });
      Object.assign(input, { checked, disabled: !able || !options.overlays });
      input.addEventListener('change', () => change(input.checked));
      return input;
    };
    const label = (input: HTMLInputElement, ...children: (Node | string)[]) =>
      h('label', { for: input.id, class: input.disabled ? 'off' : '' }, input, ...children);
    const mask = box('mask', options.mask, (on) => model.setOptions({ mask: on }));
    const all = box(
      'scales',
      options.scales.some((on) => on),
      (on) => model.setOptions({ scales: Array<boolean>(SCALES.length).fill(on) }),
    );
    const scales = known && typeof known === 'object' ? known : null;
    const heat = h('span', { class: 'heat-scale' }, '0', h('span', { class: 'heat' }), '1');
    fill(
      this.layers,
      label(mask, 'Fusion mask Mₛ', heat, h('kbd', {}, 'M')),
      options.mask && scales
        ? h(
            'p',
            { class: 'quiet inner' },
            scales.fusion_mask
              ? `White rim: Mₛ ≥ λ = ${scales.lambda}, from which lesions’ boxes are made.`
              : 'None here: the boxes were fused in another way than MSF.',
          )
        : null,
      label(all, 'Detections at single scales', h('kbd', {}, 'D')),
      all.checked && scales ? h('p', { class: 'quiet inner' }, this.caption()) : null,
      ...(all.checked ? (scales?.scales ?? []) : []).map((scale, k) => {
        const input = box(`scale-${k}`, options.scales[k] ?? false, (on) =>
          model.setOptions({ scales: options.scales.map((was, i) => (i === k ? on : was)) }),
        );
        const line = label(input, chip(SCALES[k % SCALES.length] as string), this.countOf(scale, own?.scales[k]));
        line.classList.add('inner');
        return line;
      }),
    );
  }

  private caption(): string {
    const { activeEntry, options } = this.model;
    const whose = activeEntry ? `${activeEntry.name}: boxes` : 'Boxes';
    return `${whose} that score ${options.threshold.toFixed(2)} or more, of all, by the network’s input (width × height, pixels):`;
  }

  /** own: this scale of the active image, where it is known. */
  private countOf({ size: [height, width] }: Scale, own: Scale | undefined): string {
    const drawn = own?.detections.filter(({ score }) => score >= this.model.options.threshold).length;
    return `${width} × ${height}: ${own ? `${drawn} of ${own.detections.length}` : '–'}`;
  }

  private showWindow(): void {
    const entry = this.model.activeEntry;
    const window = entry ? this.model.windowFor(entry) : null;
    this.windowHeading.textContent = entry ? `Window, ${entry.name}` : 'Window';
    for (const [input, value] of [
      [this.center, window?.center],
      [this.width, window?.width],
    ] as const) {
      input.disabled = window === null;
      if (document.activeElement !== input)
        input.value = window && value !== undefined ? String(Number(value.toFixed(window.width < 10 ? 1 : 0))) : '';
    }
  }

  /** Only what was typed changes: the other field is shown rounded. */
  private setWindow(typed: Partial<Window>): void {
    const entry = this.model.activeEntry;
    const before = entry ? this.model.windowFor(entry) : null;
    if (!entry || !before) return;
    const window = { ...before, ...typed };
    if (Number.isFinite(window.center) && window.width >= 2) this.model.setWindow(entry, window);
  }
}

/** A spot of colour beside the name of what is drawn in it. */
function chip(colour: string): HTMLElement {
  const spot = h('span', { class: 'chip' });
  spot.style.background = colour;
  return spot;
}
