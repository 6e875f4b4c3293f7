/** What is kept of each image of the open study, and of how it is looked at. */

import type { Candidate, Findings, ImageRecord, Layers, Truth } from './api';
import type { View } from './geometry';
import type { Window } from './window';

export type Layout = 'four' | 'one' | 'pair';
export type Change =
  | 'studies'
  | 'study'
  | 'layout'
  | 'findings'
  | 'options'
  | 'selection'
  | 'view'
  | 'pointer'
  | 'problem';

/** What is drawn over the images. scales: which single-scale detections. opacity: of all overlays. */
export interface Options {
  threshold: number;
  overlays: boolean;
  contours: boolean;
  boxes: boolean;
  candidates: boolean;
  labels: boolean;
  truth: boolean;
  mask: boolean;
  scales: boolean[];
  opacity: number;
}

/** One image of the open study. views: one for the four-up screen, one for others; null means fitted to the pane. */
export interface Entry {
  readonly record: ImageRecord;
  readonly name: string;
  findings: Findings | null;
  layers: Layers | 'coming' | string | null;
  truth: Truth | null;
  problem: string | null;
  window: Window | null;
  firstWindow: Window | null;
  invertedByReader: boolean;
  mirrored: boolean;
  /** Whether it has been looked at for its chest wall. */
  oriented: boolean;
  views: { four: View | null; one: View | null };
}

export interface Selection {
  readonly imageId: string;
  readonly lesion: number;
}

/** A pixel under the pointer, and the candidate there. */
export interface Pointed {
  readonly entry: Entry;
  readonly column: number;
  readonly row: number;
  readonly candidate: Candidate | null;
}

/** What to do where only the findings of an image are here; null where its file is too. */
export function missing(record: ImageRecord): string | null {
  if (record.has_pixels) return null;
  return 'Its file is not in the folders served. Name the folder with the images too: mammoseg serve IMAGES RESULTS';
}

/** An image as it is when its study is opened. */
export function fresh(record: ImageRecord, name: string): Entry {
  return {
    record,
    name,
    findings: null,
    layers: null,
    truth: null,
    problem: missing(record),
    window: null,
    firstWindow: null,
    invertedByReader: false,
    mirrored: false,
    oriented: false,
    views: { four: null, one: null },
  };
}
