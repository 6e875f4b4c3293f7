/** One place on the screen: an image with its overlays, what it says in words, and what mouse and wheel do to it. */

import type { Candidate } from './api';
import { h } from './dom';
import type { Entry } from './entry';
import {
  fitted,
  levelFor,
  type Point,
  pan,
  pixelAt,
  type Size,
  scaleBar,
  smallestAt,
  toImage,
  type View,
  zoomAt,
} from './geometry';
import { chestWallSide } from './hanging';
import type { Model } from './model';
import { drawOverlay } from './overlay';
import { coarsestLevel } from './pixels';
import { Renderer } from './render';
import { drag, isInverted } from './window';
import { noticeOf, summaryOf } from './words';

const WHEEL_STEP = 1.0015;
const CLICK = 4; // CSS pixels that a click may wander

export class Pane {
  readonly element: HTMLElement;
  private readonly image = h('div', { class: 'image' });
  private readonly overlay = h('canvas', { class: 'overlay', 'aria-hidden': 'true' });
  private readonly title = h('div', { class: 'corner title' });
  private readonly found = h('div', { class: 'corner found' });
  private readonly bar = h('div', { class: 'bar' });
  private readonly notice = h('div', { class: 'notice', role: 'status' });
  private readonly renderer: Renderer;
  private entry: Entry | null = null;
  private bare = false;
  private hovered: Candidate | null = null;
  /** Width and height of the words in the two upper corners. */
  private plates: Point[] = [];
  private press: { at: Point; last: Point; windowing: boolean; moved: boolean } | null = null;

  constructor(private readonly model: Model) {
    const scale = h('div', { class: 'corner scale' }, this.bar);
    this.element = h('section', { class: 'pane', tabindex: 0 }, this.image, this.overlay);
    this.element.append(this.title, this.found, scale, this.notice);
    document.getElementById('stage')?.append(this.element);
    this.renderer = new Renderer(this.image, () => this.drawn());
    this.listen();
  }

  /** Shows an image, or none. bare: without anything drawn over it. */
  async show(entry: Entry | null, bare: boolean): Promise<void> {
    const changed = this.entry !== entry;
    this.entry = entry;
    this.bare = bare;
    this.element.classList.toggle('empty', entry === null);
    this.say();
    if (changed) this.clear();
    await this.update();
  }

  /** Nothing of another image stays, not even until this one is there. */
  private clear(): void {
    this.shownView = null;
    this.image.style.visibility = 'hidden'; // not display: the library goes by its size
    this.bar.parentElement?.toggleAttribute('hidden', true);
    delete this.element.dataset.view;
    delete this.element.dataset.level;
    this.drawOverlay();
  }

  /** The library has drawn. */
  private drawn(): void {
    if (this.shownView && this.renderer.imageId === this.imageId) {
      this.image.style.visibility = 'visible';
      this.bar.parentElement?.toggleAttribute('hidden', false);
    }
    this.drawOverlay();
  }

  get imageId(): string | null {
    return this.entry?.record.image_id ?? null;
  }

  private get size(): Size | null {
    const { width, height } = this.entry?.record ?? { width: null, height: null };
    return width === null || height === null ? null : { width, height };
  }

  private get box(): Size {
    return { width: this.element.clientWidth, height: this.element.clientHeight };
  }

  /** How the image lies in the pane now. */
  get view(): View | null {
    if (!this.entry || !this.size) return null;
    const own = this.model.viewOf(this.entry);
    const side = this.model.layout === 'four' ? chestWallSide(this.entry.record) : null;
    const view = own ?? fitted(this.size, this.box, side, this.entry.mirrored);
    return { ...view, mirrored: this.entry.mirrored };
  }

  private shownView: View | null = null;
  private wanted = '';

  /** Draws the image and its overlays at the next frame, with the best values at hand, and asks for better ones. */
  async update(): Promise<void> {
    const { entry, size, view, model } = this;
    if (!entry || !size || !view || this.box.width === 0) return;
    const coarsest = coarsestLevel(size);
    const level = levelFor(view.scale, devicePixelRatio, coarsest);
    const plane = model.pixels.best(entry.record, level);
    if (plane?.level !== level) void this.fetch(entry, plane ? level : Math.max(level, Math.min(2, coarsest)));
    if (!plane) return;
    await this.renderer.show(entry.record, size, plane, entry.mirrored);
    const [now, window] = [this.view, model.windowFor(entry)];
    if (!now || !window || this.entry !== entry) return;
    this.shownView = now;
    const inverted = isInverted(entry.record.photometric_interpretation, entry.invertedByReader);
    this.renderer.draw(entry.record.image_id, now, window, inverted);
    if (this.element.dataset.level === undefined) performance.mark('image', { detail: entry.name });
    this.element.dataset.level = String(plane.level);
    this.element.dataset.view = [now.scale, now.x, now.y, now.mirrored ? 1 : 0].join(' ');
    this.drawScaleBar(now);
  }

  private async fetch(entry: Entry, level: number): Promise<void> {
    const key = `${entry.record.image_id}/${level}`;
    if (this.wanted === key) return;
    this.wanted = key;
    try {
      await this.model.pixels.plane(entry.record, level);
      if (this.entry === entry) await this.update();
    } catch (error) {
      entry.problem = (error as Error).message;
      if (this.entry === entry) this.say();
    } finally {
      this.wanted = '';
    }
  }

  /** Draws the overlays over what is shown now. */
  drawOverlay(): void {
    const { entry, model } = this;
    const { options } = model;
    const view = this.shownView;
    const off = this.bare || !options.overlays || !entry || entry.record.status !== 'processed' || !view;
    const chosen = model.selection;
    drawOverlay(
      this.overlay,
      this.box,
      view ?? { scale: 1, x: 0, y: 0, mirrored: false },
      devicePixelRatio,
      off
        ? null
        : {
            lesions: model.lesionsOf(entry),
            candidates: model.candidatesOf(entry),
            layers: entry.layers !== null && typeof entry.layers === 'object' ? entry.layers : null,
            threshold: options.threshold,
            truth: options.truth ? entry.truth : null,
            selected: chosen?.imageId === this.imageId ? (chosen?.lesion ?? null) : null,
            pointed: this.hovered,
            plates: this.plates,
            show: options,
            opacity: options.opacity,
          },
    );
  }

  private drawScaleBar(view: View): void {
    const spacing = this.entry?.record.spacing_mm?.[1] ?? null;
    const { css, label } = scaleBar(view.scale, spacing, Math.min(160, this.box.width / 3));
    this.bar.style.width = `${css}px`;
    this.bar.textContent = label;
  }

  /** What is known of the image in words: its view, what was found, or why nothing was looked for. */
  say(): void {
    const { entry, model } = this;
    const summary = entry ? summaryOf(entry, model.lesionsOf(entry).length) : '';
    this.element.setAttribute('aria-label', entry ? `${entry.name}: ${summary}` : 'empty');
    this.title.textContent = entry ? `${entry.name}${entry.mirrored ? ' · mirrored' : ''}` : '';
    this.title.classList.toggle('long', entry !== null && entry.record.laterality === null);
    const pair = model.layout === 'pair' ? 'with overlays · ' : '';
    this.found.textContent = this.bare ? 'without overlays' : pair + summary;
    this.plates = [this.title, this.found].map(({ offsetWidth, offsetHeight }) => [offsetWidth, offsetHeight]);
    this.element.dataset.status = entry?.record.status ?? 'processed';
    const [heading, text] = (entry && noticeOf(entry)) ?? [null, ''];
    this.notice.hidden = heading === null;
    this.notice.replaceChildren(h('strong', {}, heading ?? ''), h('span', {}, text));
    this.element.classList.toggle('active', entry !== null && model.active === this.imageId && model.layout === 'four');
  }

  private listen(): void {
    const { element, model } = this;
    element.addEventListener('wheel', (event) => this.wheel(event), { passive: false });
    element.addEventListener('contextmenu', (event) => event.preventDefault());
    element.addEventListener('pointerdown', (event) => this.down(event));
    element.addEventListener('pointermove', (event) => this.move(event));
    element.addEventListener('pointerup', (event) => this.up(event));
    element.addEventListener('pointercancel', () => {
      this.press = null;
    });
    element.addEventListener('pointerleave', () => {
      this.hover(null);
      model.point(null);
    });
    element.addEventListener('dblclick', () => {
      if (this.imageId) model.setLayout(model.layout === 'four' ? 'one' : 'four', this.imageId);
    });
    element.addEventListener('focus', () => this.activate());
  }

  /** What fields, keys and buttons act on is the image last touched. */
  private activate(): void {
    if (this.imageId) this.model.setActive(this.imageId);
  }

  private at(event: MouseEvent): Point {
    const { left, top } = this.element.getBoundingClientRect();
    return [event.clientX - left, event.clientY - top];
  }

  private wheel(event: WheelEvent): void {
    event.preventDefault();
    const { entry, size, view } = this;
    if (!entry || !size || !view) return;
    this.activate();
    const pixels = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? event.deltaY * 33 : event.deltaY;
    this.model.setView(entry, zoomAt(view, size, this.box, this.at(event), WHEEL_STEP ** -pixels));
    this.point(event);
  }

  private down(event: PointerEvent): void {
    this.activate();
    if (!this.entry || event.button === 1) return;
    const at = this.at(event);
    this.press = { at, last: at, windowing: event.button === 2 || event.shiftKey, moved: false };
    this.element.setPointerCapture(event.pointerId);
  }

  private move(event: PointerEvent): void {
    const { entry, size, view, press, model } = this;
    this.point(event);
    if (!entry || !size || !view || !press) return;
    const at = this.at(event);
    const [dx, dy] = [at[0] - press.last[0], at[1] - press.last[1]];
    press.moved ||= Math.hypot(at[0] - press.at[0], at[1] - press.at[1]) > CLICK;
    if (!press.moved) return;
    press.last = at;
    if (!press.windowing) {
      model.setView(entry, pan(view, size, dx, dy));
      return;
    }
    const window = model.windowFor(entry);
    if (window) model.setWindow(entry, drag(window, dx, dy, model.spanOf(entry)));
  }

  private up(event: PointerEvent): void {
    const { press, entry, view } = this;
    this.press = null;
    if (!press || press.moved || press.windowing || !entry || !view) return;
    const hit = this.hit(toImage(view, this.box, this.at(event)));
    if (hit !== null) this.model.select({ imageId: entry.record.image_id, lesion: hit });
  }

  /** The lesion whose box holds a native point: the smallest one. */
  private hit(point: Point): number | null {
    if (!this.entry || this.bare || !this.model.options.overlays) return null;
    return smallestAt(point, this.model.lesionsOf(this.entry))?.id ?? null;
  }

  private point(event: MouseEvent): void {
    const { entry, size, view, model } = this;
    const at = view && toImage(view, this.box, this.at(event));
    const pixel = size && at ? pixelAt(at, size) : null;
    const { overlays, candidates } = model.options;
    const over = entry && at && overlays && candidates && !this.bare;
    this.hover(over ? smallestAt(at, model.candidatesOf(entry)) : null);
    model.point(entry && pixel ? { entry, ...pixel, candidate: this.hovered } : null);
  }

  private hover(candidate: Candidate | null): void {
    if (this.hovered === candidate) return;
    this.hovered = candidate;
    this.drawOverlay();
  }
}
