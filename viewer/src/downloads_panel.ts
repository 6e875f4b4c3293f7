/** The findings to take away, as files. */

import { resultAddress } from './api';
import { announce, byId, fill, h } from './dom';
import type { Model } from './model';

/** Formats by their names in the service: what is on the screen, and what it means. */
const FORMATS: Record<string, [word: string, meaning: string]> = {
  json: ['JSON', 'boxes, contours, sizes'],
  mask: ['Label image', 'PNG: lesions by number'],
  overlay: ['Picture', 'PNG with contours'],
  seg: ['DICOM SEG', 'outlines as segmentation'],
  pr: ['DICOM PR', 'contours over the image'],
  sc: ['DICOM SC', 'picture with contours'],
  cadsr: ['DICOM CAD SR', 'mammography report'],
  sr: ['DICOM SR', 'measurement report'],
  zip: ['ZIP', 'all files of all images'],
};
const SAID_MS = 6000;

export class DownloadsPanel {
  private readonly links = h('div', { class: 'downloads' });

  constructor(private readonly model: Model) {
    byId('downloads').append(
      h('h2', {}, 'Download'),
      h('p', { class: 'quiet' }, 'All lesions reported, whatever the threshold above.'),
      this.links,
    );
    model.listen((change) => {
      if (['study', 'selection', 'layout'].includes(change)) this.update();
    });
    this.update();
  }

  private update(): void {
    const { activeEntry, study } = this.model;
    const image = activeEntry?.record;
    fill(
      this.links,
      h('strong', {}, `This image: ${activeEntry?.name ?? 'none'}`),
      ...(image ? this.rows('images', image.image_id, image.formats) : []),
      image?.formats.length === 0 ? h('span', { class: 'all' }, 'nothing yet') : null,
      ...(study && study.formats.length > 0
        ? [h('strong', {}, 'Whole study'), ...this.rows('studies', study.study_id, study.formats)]
        : []),
    );
  }

  private rows(kind: 'images' | 'studies', id: string, formats: readonly string[]): HTMLElement[] {
    return formats.flatMap((format) => {
      const [word, meaning] = FORMATS[format] ?? [format, ''];
      const said = h('span', { class: 'quiet' }, meaning);
      const link = h('a', { href: resultAddress(kind, id, format), download: '', 'data-key': `${id}/${format}` }, word);
      link.addEventListener('click', () => {
        said.textContent = 'the browser saves it';
        announce(`${word}: asked for, the browser saves it`);
        setTimeout(() => {
          said.textContent = meaning;
        }, SAID_MS);
      });
      return [link, said];
    });
  }
}
