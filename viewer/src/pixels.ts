/** Stored values of the images, as the service sends them: levels of halved size first, native ones when they are there. */

import { ask, type ImageRecord } from './api';
import { missing } from './entry';
import { levelSize, type Size } from './geometry';
import type { Window } from './window';

export type Values = Uint16Array | Int16Array;

/** Level `level` of one image, row by row; each value is the mean of 2^level x 2^level stored ones. */
export interface Plane extends Size {
  readonly level: number;
  readonly values: Values;
  readonly lowest: number;
  readonly highest: number;
  /** What the file asks to be shown with, where the service learned it from the pixels. */
  readonly window: Window | null;
}

const ROOM = 600e6; // bytes of native planes at hand
const LITTLE_ENDIAN = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1;

export class PixelStore {
  private readonly planes = new Map<string, Promise<Plane>>();
  private readonly ready = new Map<string, Plane>();

  /** A level of an image, fetched once; never asked for where the image's file is not at the service. */
  plane(image: ImageRecord, level: number): Promise<Plane> {
    const nothing = missing(image);
    if (nothing !== null) return Promise.reject(new Error(nothing));
    const key = `${image.image_id}/${level}`;
    const known = this.planes.get(key);
    if (known) return known;
    const coming = fetchPlane(image.image_id, level).then((plane) => this.keep(key, plane));
    this.planes.set(key, coming);
    coming.catch(() => this.planes.delete(key));
    return coming;
  }

  /** A level that is at hand already. */
  at(image: ImageRecord, level: number): Plane | null {
    return this.ready.get(`${image.image_id}/${level}`) ?? null;
  }

  /** Of the levels at hand, the one to draw with where `level` is wanted: that one, else the next finer, else the next coarser. */
  best(image: ImageRecord, level: number): Plane | null {
    for (let k = level; k >= 0; k--) {
      const plane = this.at(image, k);
      if (plane) return plane;
    }
    for (let k = level + 1; k < 16; k++) {
      const plane = this.at(image, k);
      if (plane) return plane;
    }
    return null;
  }

  /** The stored value of a pixel, null while the native values are not at hand. */
  value(image: ImageRecord, column: number, row: number): number | null {
    const plane = this.at(image, 0);
    return plane ? (plane.values[row * plane.width + column] ?? null) : null;
  }

  private keep(key: string, plane: Plane): Plane {
    this.ready.set(key, plane);
    let used = 0;
    for (const kept of this.ready.values()) used += kept.values.byteLength;
    for (const [old, kept] of this.ready) {
      if (used <= ROOM || old === key) break;
      used -= kept.values.byteLength;
      this.ready.delete(old);
      this.planes.delete(old);
    }
    return plane;
  }
}

async function fetchPlane(imageId: string, level: number): Promise<Plane> {
  const answer = await ask(`images/${imageId}/pixels?level=${level}`);
  const number = (name: string) => Number(answer.headers.get(name) ?? Number.NaN);
  const [height, width] = [number('X-Height'), number('X-Width')];
  const signed = ['1', 'true'].includes((answer.headers.get('X-Signed') ?? '').toLowerCase());
  const bytes = await answer.arrayBuffer();
  if (bytes.byteLength !== height * width * 2) {
    throw new Error(`expected ${width} x ${height} values of 16 bits, got ${bytes.byteLength} bytes`);
  }
  if (!LITTLE_ENDIAN) swap(new Uint8Array(bytes));
  const values = signed ? new Int16Array(bytes) : new Uint16Array(bytes);
  const [center, span] = [number('X-Window-Center'), number('X-Window-Width')];
  const window = Number.isFinite(center) && Number.isFinite(span) ? { center, width: span } : null;
  return { level, height, width, values, window, ...extremes(values) };
}

function extremes(values: Values): { lowest: number; highest: number } {
  let lowest = 65536;
  let highest = -65536;
  for (let i = 0; i < values.length; i++) {
    const value = values[i] as number;
    if (value < lowest) lowest = value;
    if (value > highest) highest = value;
  }
  return { lowest, highest };
}

function swap(bytes: Uint8Array): void {
  for (let i = 0; i + 1 < bytes.length; i += 2) {
    const low = bytes[i] as number;
    bytes[i] = bytes[i + 1] as number;
    bytes[i + 1] = low;
  }
}

/** The plane with left and right swapped. */
export function mirrored(plane: Plane): Plane {
  const values = plane.values.slice();
  for (let row = 0; row < plane.height; row++) values.subarray(row * plane.width, (row + 1) * plane.width).reverse();
  return { ...plane, values };
}

/** The coarsest level worth having: about 200 pixels high. */
export function coarsestLevel(image: Size): number {
  let level = 0;
  while (levelSize(image, level + 1).height >= 200 && level < 6) level += 1;
  return level;
}
