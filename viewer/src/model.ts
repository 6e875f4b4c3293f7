/** What is open and how it is looked at. Panels and panes read it, call its actions, and are told what changed. */

import {
  type Findings,
  get,
  type ImageRecord,
  type Info,
  type Layers,
  type Lesion,
  type Study,
  type Truth,
} from './api';
import { type Change, type Entry, fresh, type Layout, missing, type Options, type Pointed, type Selection } from './entry';
import type { View } from './geometry';
import { chestWallOf, chestWallSide, hang, inOrder, namesOf, type Page } from './hanging';
import { coarsestLevel, PixelStore, type Plane } from './pixels';
import { forgetPlanes } from './render';
import { isInverted, type Window, windowOf } from './window';

/** Where no lesion says better: weaker candidates are not shown until they are asked for. */
const CANDIDATES_FROM = 0.3;

export type Contents = [Study[], ImageRecord[]];

/** Asks the service what there is. */
export function read(): Promise<Contents> {
  return Promise.all([get<Study[]>('studies'), get<ImageRecord[]>('images')]);
}

export class Model {
  readonly pixels = new PixelStore();
  info: Info | null = null;
  studies: Study[] = [];
  images = new Map<string, ImageRecord>();
  study: Study | null = null;
  entries: Entry[] = [];
  pages: Page<ImageRecord>[] = [];
  page = 0;
  layout: Layout = 'four';
  active: string | null = null;
  selection: Selection | null = null;
  options: Options = {
    threshold: 0.3,
    overlays: true,
    contours: true,
    boxes: false,
    candidates: true,
    labels: true,
    truth: false,
    mask: false,
    scales: [],
    opacity: 1,
  };
  pointed: Pointed | null = null;
  private readonly listeners: ((change: Change, entry: Entry | null) => void)[] = [];

  listen(listener: (change: Change, entry: Entry | null) => void): void {
    this.listeners.push(listener);
  }

  /** entry: the image that alone is concerned, where one is. */
  tell(change: Change, entry: Entry | null = null): void {
    for (const listener of this.listeners) listener(change, entry);
  }

  /** Reads what there is; opens the first study when none is open, and new findings of the open one. */
  async refresh(): Promise<void> {
    await this.take(await read());
  }

  /** Asks for the values that the first screen will need first. */
  foresee([studies, images]: Contents): void {
    const first = hang(images.filter(({ image_id }) => studies[0]?.images.includes(image_id)))[0] ?? [];
    for (const image of first) if (image) this.coarse(image)?.catch(() => undefined);
  }

  private coarse(image: ImageRecord): Promise<Plane> | null {
    const { width, height } = image;
    return width === null || height === null ? null : this.pixels.plane(image, coarsestLevel({ width, height }));
  }

  async take([studies, images]: Contents): Promise<void> {
    this.studies = studies;
    this.images = new Map(images.map((image) => [image.image_id, image]));
    this.tell('studies');
    const open = studies.find((study) => study.study_id === this.study?.study_id);
    if (!open) {
      this.study = null;
      if (studies[0]) await this.open(studies[0].study_id);
      else this.tell('study');
      return;
    }
    const before = new Map(this.entries.map((entry) => [entry.record.image_id, entry.record]));
    const same = open.images.length === before.size && open.images.every((id) => before.has(id));
    const changed = (id: string) => JSON.stringify(before.get(id)) !== JSON.stringify(this.images.get(id));
    if (!same || open.images.some(changed)) await this.open(open.study_id, true);
  }

  /** Opens a study. keep: how images were looked at stays. */
  async open(studyId: string, keep = false): Promise<void> {
    const study = this.studies.find((candidate) => candidate.study_id === studyId);
    if (!study) return;
    const old = keep ? new Map(this.entries.map((entry) => [entry.record.image_id, entry])) : new Map<string, Entry>();
    const records = inOrder(study.images.flatMap((id) => this.images.get(id) ?? []));
    this.study = study;
    if (!keep) forgetPlanes();
    const names = namesOf(records);
    this.entries = records.map((record, k) => {
      const name = names[k] ?? record.name;
      const same = old.get(record.image_id);
      return same ? { ...same, record, name, findings: null, layers: null, problem: missing(record) } : fresh(record, name);
    });
    this.pages = hang(records);
    if (!keep || this.page >= this.pages.length) this.page = 0;
    if (!keep) this.selection = null;
    if (!keep || !this.entry(this.active))
      this.active = this.pages[this.page]?.find((image) => image)?.image_id ?? null;
    this.tell('study');
    const entries = this.entries;
    await Promise.all(entries.map((entry) => this.loadFindings(entry)));
    if (!keep && entries === this.entries) this.setOptions({ threshold: this.asReported });
  }

  private async loadFindings(entry: Entry): Promise<void> {
    if (entry.record.status === 'pending') return;
    try {
      entry.findings = await get<Findings>(`images/${entry.record.image_id}/findings`);
    } catch (error) {
      entry.problem = (error as Error).message;
    }
    if (this.entries.includes(entry)) this.tell('findings');
  }

  entry(imageId: string | null): Entry | null {
    return this.entries.find((entry) => entry.record.image_id === imageId) ?? null;
  }

  get activeEntry(): Entry | null {
    return this.entry(this.active);
  }

  /** The images on the screen, in order of their places. */
  get visible(): (Entry | null)[] {
    if (this.layout === 'one') return [this.activeEntry];
    if (this.layout === 'pair') return [this.activeEntry, this.activeEntry];
    return (this.pages[this.page] ?? []).map((image) => this.entry(image?.image_id ?? null));
  }

  /** All lesions at or above the threshold, as the list shows them. */
  get lesions(): { entry: Entry; lesion: Lesion }[] {
    return this.entries.flatMap((entry) => this.lesionsOf(entry).map((lesion) => ({ entry, lesion })));
  }

  lesionsOf(entry: Entry): Lesion[] {
    return (entry.findings?.lesions ?? []).filter((lesion) => lesion.score >= this.options.threshold);
  }

  /** What was found and is no lesion, at or above the threshold. */
  candidatesOf(entry: Entry): Findings['candidates'] {
    const lesions = new Set((entry.findings?.lesions ?? []).map((lesion) => lesion.box_xyxy.join()));
    const other = (entry.findings?.candidates ?? []).filter((candidate) => !lesions.has(candidate.box_xyxy.join()));
    return other.filter((candidate) => candidate.score >= this.options.threshold);
  }

  /** The threshold that shows every lesion reported, and candidates that scored as high as the weakest of them. */
  get asReported(): number {
    const least = this.info?.operating?.min_score ?? 0;
    const scores = this.entries.flatMap((entry) => entry.findings?.lesions ?? []).map(({ score }) => score);
    return Math.max(least, Math.floor(Math.min(CANDIDATES_FROM, ...scores) * 100) / 100);
  }

  setOptions(options: Partial<Options>): void {
    Object.assign(this.options, options);
    if (options.truth) for (const entry of this.entries) void this.loadTruth(entry);
    if (options.mask || options.scales?.some((on) => on)) for (const entry of this.visible) void this.loadLayers(entry);
    this.tell('options');
  }

  get wantsLayers(): boolean {
    return this.options.mask || this.options.scales.some((on) => on);
  }

  async loadTruth(entry: Entry): Promise<void> {
    if (entry.truth || !entry.record.has_truth) return;
    try {
      entry.truth = await get<Truth>(`images/${entry.record.image_id}/truth`);
      this.tell('options');
    } catch (error) {
      entry.problem = (error as Error).message;
    }
  }

  /** Asks for the steps of the detection; the service may have to compute them. */
  async loadLayers(entry: Entry | null): Promise<void> {
    if (!entry || entry.layers !== null) return;
    if (entry.record.status !== 'processed' || !entry.record.has_layers) return;
    entry.layers = 'coming';
    this.tell('options');
    try {
      entry.layers = await get<Layers>(`images/${entry.record.image_id}/layers`);
    } catch (error) {
      entry.layers = (error as Error).message;
    }
    this.tell('options');
  }

  setLayout(layout: Layout, imageId: string | null = this.active): void {
    this.layout = layout;
    this.active = imageId ?? this.active;
    this.showPageOf(this.active);
    if (this.wantsLayers) for (const entry of this.visible) void this.loadLayers(entry);
    this.tell('layout');
  }

  setActive(imageId: string): void {
    if (this.active === imageId) return;
    this.active = imageId;
    this.tell('selection');
  }

  turnPage(step: number): void {
    const page = this.page + step;
    if (page < 0 || page >= this.pages.length) return;
    this.page = page;
    this.active = this.pages[page]?.find((image) => image)?.image_id ?? null;
    this.setLayout('four');
  }

  private showPageOf(imageId: string | null): void {
    const page = this.pages.findIndex((images) => images.some((image) => image?.image_id === imageId));
    if (page >= 0) this.page = page;
  }

  select(selection: Selection): void {
    this.selection = selection;
    this.active = selection.imageId;
    const before = this.page;
    this.showPageOf(selection.imageId);
    if (this.layout !== 'four' || this.page !== before) this.tell('layout');
    this.tell('selection');
  }

  viewOf(entry: Entry): View | null {
    return this.layout === 'four' ? entry.views.four : entry.views.one;
  }

  setView(entry: Entry, view: View | null): void {
    entry.views[this.layout === 'four' ? 'four' : 'one'] = view;
    this.tell('view', entry);
  }

  /** What to draw an image with, once some of its values are at hand. */
  windowFor(entry: Entry): Window | null {
    if (entry.window) return entry.window;
    const plane = this.pixels.best(entry.record, 16);
    if (!plane) return null;
    const given = entry.record.window ?? plane.window;
    entry.firstWindow = given && given.width >= 2 ? given : windowOf(plane.values, entry.record.rescale);
    entry.window = entry.firstWindow;
    return entry.window;
  }

  /** Mirrors an image whose chest wall is plainly on the outer side of its place. */
  async orient(entry: Entry): Promise<void> {
    const { record } = entry;
    const wanted = chestWallSide(record);
    if (entry.oriented || wanted === null) return;
    const plane = await this.coarse(record);
    if (!plane) return;
    const inverted = isInverted(record.photometric_interpretation, false);
    const wall = chestWallOf(plane.values, plane.width, inverted);
    entry.mirrored = wall !== null && wall !== wanted;
    entry.oriented = true;
  }

  setWindow(entry: Entry, window: Window | null): void {
    entry.window = window ?? entry.firstWindow;
    this.tell('view', entry);
  }

  invert(entry: Entry): void {
    entry.invertedByReader = !entry.invertedByReader;
    this.tell('view', entry);
  }

  /** The range of modality values in an image. */
  spanOf(entry: Entry): number {
    const plane = this.pixels.best(entry.record, 16);
    return plane ? Math.max(1, (plane.highest - plane.lowest) * Math.abs(entry.record.rescale.slope)) : 1;
  }

  point(pointed: Pointed | null): void {
    this.pointed = pointed;
    this.tell('pointer');
  }
}
