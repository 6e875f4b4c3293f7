/**
 * Where an image lies in its pane.
 *
 * Native frame: pixel edges, (0, 0) is the top-left corner of the image's top-left pixel, x to the right, y down; findings,
 * truth and layers are in it. Screen frame: CSS pixels from the pane's top-left corner. Only this file changes coordinates.
 */

export type Point = readonly [x: number, y: number];
export type Box = readonly [x1: number, y1: number, x2: number, y2: number];
export interface Size {
  readonly width: number;
  readonly height: number;
}
export type Side = 'left' | 'right';

/** scale: CSS pixels for one native pixel. x, y: the native point at the pane's centre. mirrored: left and right swapped. */
export interface View {
  readonly scale: number;
  readonly x: number;
  readonly y: number;
  readonly mirrored: boolean;
}

const SCALE_MAX = 32;

/** A native point on the screen. */
export function toScreen(view: View, pane: Size, [x, y]: Point): Point {
  const sign = view.mirrored ? -1 : 1;
  return [pane.width / 2 + sign * (x - view.x) * view.scale, pane.height / 2 + (y - view.y) * view.scale];
}

/** The native point at a place of the screen: the inverse of `toScreen`. */
export function toImage(view: View, pane: Size, [x, y]: Point): Point {
  const sign = view.mirrored ? -1 : 1;
  return [view.x + (sign * (x - pane.width / 2)) / view.scale, view.y + (y - pane.height / 2) / view.scale];
}

/** The whole image, as large as it goes. chestWall: the image's side on the screen that touches the pane's edge, or centred. */
export function fitted(image: Size, pane: Size, chestWall: Side | null = null, mirrored = false): View {
  const scale = Math.min(pane.width / image.width, pane.height / image.height);
  const free = (pane.width / scale - image.width) / 2;
  const shift = chestWall === null ? 0 : chestWall === 'left' ? free : -free;
  const x = image.width / 2 + (mirrored ? -shift : shift);
  return { scale, x, y: image.height / 2, mirrored };
}

/** Another view of the same image, `factor` times as large, with what lies under `at` (screen) staying there. */
export function zoomAt(view: View, image: Size, pane: Size, at: Point, factor: number): View {
  const lowest = Math.min(fitted(image, pane).scale / 2, 1);
  const scale = Math.min(Math.max(view.scale * factor, lowest), SCALE_MAX);
  const [x, y] = toImage(view, pane, at);
  const [nowX, nowY] = toImage({ ...view, scale }, pane, at);
  return keepInside({ ...view, scale, x: view.x + x - nowX, y: view.y + y - nowY }, image);
}

/** The view after dragging the image by (dx, dy) CSS pixels. */
export function pan(view: View, image: Size, dx: number, dy: number): View {
  const sign = view.mirrored ? -1 : 1;
  return keepInside({ ...view, x: view.x - (sign * dx) / view.scale, y: view.y - dy / view.scale }, image);
}

/** A view of `box` in the middle, filling about `share` of the pane, never smaller than the whole image. */
export function lookAt(mirrored: boolean, image: Size, pane: Size, box: Box, share = 0.35): View {
  const [x1, y1, x2, y2] = box;
  const scale = share * Math.min(pane.width / Math.max(x2 - x1, 1), pane.height / Math.max(y2 - y1, 1));
  const least = fitted(image, pane).scale;
  return { scale: Math.min(Math.max(scale, least), 4), x: (x1 + x2) / 2, y: (y1 + y2) / 2, mirrored };
}

/** The pane's centre stays on the image, so that it cannot be lost. */
function keepInside(view: View, image: Size): View {
  const x = Math.min(Math.max(view.x, 0), image.width);
  const y = Math.min(Math.max(view.y, 0), image.height);
  return { ...view, x, y };
}

/** The coarsest halving of the image that still has a value for every device pixel. */
export function levelFor(scale: number, deviceRatio: number, coarsest: number): number {
  const level = Math.floor(Math.log2(1 / (scale * deviceRatio)) + 1e-9);
  return Math.min(Math.max(level, 0), coarsest);
}

/** Columns and rows of level k: half as many each time, rounded up. */
export function levelSize(image: Size, level: number): Size {
  const step = 2 ** level;
  return { width: Math.ceil(image.width / step), height: Math.ceil(image.height / step) };
}

/** The pixel that holds a native point, or null outside the image. */
export function pixelAt([x, y]: Point, image: Size): { column: number; row: number } | null {
  if (x < 0 || y < 0 || x >= image.width || y >= image.height) return null;
  return { column: Math.floor(x), row: Math.floor(y) };
}

/** Of things with boxes, the one with the smallest that holds a native point. */
export function smallestAt<T extends { readonly box_xyxy: Box }>([x, y]: Point, things: readonly T[]): T | null {
  const area = ({ box_xyxy: [x1, y1, x2, y2] }: T) => (x2 - x1) * (y2 - y1);
  const inside = things.filter(({ box_xyxy: [x1, y1, x2, y2] }) => x >= x1 && x < x2 && y >= y1 && y < y2);
  return inside.sort((a, b) => area(a) - area(b))[0] ?? null;
}

export interface ScaleBar {
  readonly css: number;
  readonly label: string;
}

/** The longest round length (1, 2 or 5 times a power of ten) that takes at most `most` CSS pixels. */
export function scaleBar(scale: number, spacingMm: number | null, most: number): ScaleBar {
  const unit = spacingMm === null ? scale : scale / spacingMm; // CSS pixels for one mm, or one pixel
  const power = 10 ** Math.floor(Math.log10(most / unit));
  const length = ([5, 2, 1].find((n) => n * power * unit <= most + 1e-9) ?? 1) * power;
  return { css: length * unit, label: `${round(length)} ${spacingMm === null ? 'px' : 'mm'}` };
}

function round(value: number): string {
  return value >= 1 ? String(Math.round(value)) : value.toPrecision(1);
}
