/** The panes on the screen: four views, one, or one image without and with its overlays. */

import { byId } from './dom';
import type { Change, Entry, Selection } from './entry';
import { lookAt, pan, type Size, type View, zoomAt } from './geometry';
import type { Model } from './model';
import { Pane } from './pane';
import { resizeRenderers } from './render';

export class Stage {
  private readonly panes: Pane[];
  private readonly element = byId('stage');
  private background = 0;

  constructor(private readonly model: Model) {
    this.panes = Array.from({ length: 4 }, () => new Pane(model));
    model.listen((change, entry) => this.heed(change, entry));
    new ResizeObserver(() => {
      resizeRenderers();
      for (const pane of this.panes) void pane.update().then(() => pane.drawOverlay());
    }).observe(this.element);
  }

  private heed(change: Change, entry: Entry | null): void {
    if (change === 'study' || change === 'layout') void this.arrange();
    if (change === 'view')
      for (const pane of this.panes) if (pane.imageId === entry?.record.image_id) void pane.update();
    if (change === 'findings' || change === 'options' || change === 'selection') {
      for (const pane of this.panes) {
        pane.say();
        pane.drawOverlay();
      }
    }
  }

  /** Puts the images of the model into the panes, coarse ones first, and then fetches their stored values. */
  private async arrange(): Promise<void> {
    const turn = ++this.background;
    const { model, panes } = this;
    const { layout, visible } = model;
    this.element.dataset.layout = layout;
    const screens = byId('screen');
    screens.hidden = layout !== 'four' || model.pages.length < 2;
    screens.textContent = `Screen ${model.page + 1} of ${model.pages.length} (Page ↓ ↑)`;
    panes.forEach((pane, k) => {
      pane.element.hidden = k >= visible.length;
    });
    resizeRenderers();
    const shown = panes.slice(0, Math.max(visible.length, 1)).map(async (pane, k) => {
      const entry = visible[k] ?? null;
      if (entry) await this.orient(entry);
      if (turn === this.background) await pane.show(entry, layout === 'pair' && k === 0);
    });
    await Promise.all(shown);
    for (const entry of new Set(visible)) {
      if (turn !== this.background) return;
      if (entry?.record.width) await model.pixels.plane(entry.record, 0).catch(() => undefined);
      if (turn === this.background) model.tell('pointer');
    }
  }

  private async orient(entry: Entry): Promise<void> {
    try {
      await this.model.orient(entry);
    } catch (error) {
      entry.problem = (error as Error).message;
    }
  }

  /** The pane of the active image, the one with overlays where there are two. */
  private get activePane(): Pane | null {
    return this.panes.findLast((pane) => !pane.element.hidden && pane.imageId === this.model.active) ?? null;
  }

  /** Changes the active image's view. */
  private change(make: (view: View, image: Size, box: Size) => View | null): void {
    const [entry, pane] = [this.model.activeEntry, this.activePane];
    if (!entry?.record.width || !entry.record.height || !pane?.view) return;
    const box = { width: pane.element.clientWidth, height: pane.element.clientHeight };
    this.model.setView(entry, make(pane.view, { width: entry.record.width, height: entry.record.height }, box));
  }

  pan(dx: number, dy: number): void {
    this.change((view, image) => pan(view, image, dx, dy));
  }

  zoom(factor: number): void {
    this.change((view, image, box) => zoomAt(view, image, box, [box.width / 2, box.height / 2], factor));
  }

  fit(): void {
    this.change(() => null);
  }

  /** One native pixel for each pixel of the screen. */
  actualSize(): void {
    this.change((view) => ({ ...view, scale: 1 / devicePixelRatio }));
  }

  mirror(): void {
    const entry = this.model.activeEntry;
    if (!entry) return;
    entry.mirrored = !entry.mirrored;
    this.model.tell('layout');
  }

  /** Goes to a lesion: its image becomes the active one and shows it in the middle. */
  goTo(selection: Selection): void {
    this.model.select(selection);
    const entry = this.model.entry(selection.imageId);
    const lesion = entry?.findings?.lesions.find(({ id }) => id === selection.lesion);
    const pane = this.panes[0]?.element;
    if (!entry?.record.width || !entry.record.height || !lesion || !pane) return;
    const image = { width: entry.record.width, height: entry.record.height };
    const box = { width: pane.clientWidth, height: pane.clientHeight };
    this.model.setView(entry, lookAt(entry.mirrored, image, box, lesion.box_xyxy));
  }

  /** Goes to the next lesion of the list, or the one before. */
  step(by: number): void {
    const { lesions, selection } = this.model;
    if (lesions.length === 0) return;
    const at = lesions.findIndex(
      ({ entry, lesion }) => entry.record.image_id === selection?.imageId && lesion.id === selection.lesion,
    );
    const next = lesions[at < 0 ? (by > 0 ? 0 : lesions.length - 1) : (at + by + lesions.length) % lesions.length];
    if (next) this.goTo({ imageId: next.entry.record.image_id, lesion: next.lesion.id });
  }
}
