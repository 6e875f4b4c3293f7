/** The hanging protocol: which image goes where. RCC LCC above RMLO LMLO, chest walls together in the middle. */

import type { Side } from './geometry';

export interface Hangable {
  readonly image_id: string;
  readonly laterality: string | null;
  readonly view_position: string | null;
}

/** One screen: four places, top left, top right, bottom left, bottom right. */
export type Page<T> = readonly (T | null)[];

const STANDARD = ['RCC', 'LCC', 'RMLO', 'LMLO'];
export const PLACES = 4;

export function viewName(image: Hangable): string {
  return `${image.laterality ?? ''}${image.view_position ?? ''}`;
}

/** The screens of a study: the standard views first, one image each, then all others as they come, four at a time. */
export function hang<T extends Hangable>(images: readonly T[]): Page<T>[] {
  const rest = [...images];
  const standard = STANDARD.map((name) => {
    const at = rest.findIndex((image) => viewName(image) === name);
    return at < 0 ? null : (rest.splice(at, 1)[0] ?? null);
  });
  const pages: Page<T>[] = standard.some((image) => image !== null) ? [standard] : [];
  for (let i = 0; i < rest.length; i += PLACES) {
    const four = rest.slice(i, i + PLACES);
    pages.push(Array.from({ length: PLACES }, (_, k) => four[k] ?? null));
  }
  return pages;
}

/** The side of the pane that the chest wall goes to: the inner one, where the pane stands in the standard order. */
export function chestWallSide(image: Hangable): Side | null {
  if (image.laterality === 'R') return 'right';
  return image.laterality === 'L' ? 'left' : null;
}

const STRIP = 0.06;
const PLAIN = 1.5;
const LEAST = 0.1; // of the strip's pixels

/**
 * The side of the image that the chest wall is at: where the outermost strip holds much more tissue; null where that is
 * not plain. values: row by row, bright = dense unless inverted.
 */
export function chestWallOf(values: ArrayLike<number>, width: number, inverted: boolean): Side | null {
  const strip = Math.max(1, Math.round(width * STRIP));
  let lowest = Number.POSITIVE_INFINITY;
  let highest = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < values.length; i++) {
    const value = values[i] ?? 0;
    lowest = Math.min(lowest, value);
    highest = Math.max(highest, value);
  }
  const above = lowest + (highest - lowest) * (inverted ? 0.9 : 0.1);
  let left = 0;
  let right = 0;
  for (let row = 0; row < values.length; row += width) {
    for (let k = 0; k < strip; k++) {
      if ((values[row + k] ?? 0) > above !== inverted) left += 1;
      if ((values[row + width - 1 - k] ?? 0) > above !== inverted) right += 1;
    }
  }
  const least = (LEAST * strip * values.length) / width;
  if (left > Math.max(least, PLAIN * right)) return 'left';
  return right > Math.max(least, PLAIN * left) ? 'right' : null;
}

/** The images of a study in the order of its screens. */
export function inOrder<T extends Hangable>(images: readonly T[]): T[] {
  return hang(images).flatMap((page) => page.filter((image) => image !== null));
}

/** What each image is called: its view, with a number where there are several, or the name of its file. */
export function namesOf(images: readonly (Hangable & { readonly name: string })[]): string[] {
  const seen = new Map<string, number>();
  return images.map((image) => {
    const view = viewName(image);
    const number = (seen.get(view) ?? 0) + 1;
    seen.set(view, number);
    if (view === '') return image.name.split('/').at(-1) ?? image.name;
    return number === 1 ? view : `${view} ${number}`;
  });
}
