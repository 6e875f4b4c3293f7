/** Window and level: which values are drawn from black to white. In modality values, as DICOM's Window Center and Width. */

export interface Window {
  readonly center: number;
  readonly width: number;
}

export interface Rescale {
  readonly slope: number;
  readonly intercept: number;
}

/** The values drawn black and white: DICOM's linear function (PS3.3 C.11.2.1.2). */
export function bounds(window: Window): { lower: number; upper: number } {
  const half = (window.width - 1) / 2;
  return { lower: window.center - 0.5 - half, upper: window.center - 0.5 + half };
}

/** The window after dragging by (dx, dy) CSS pixels: right widens, down darkens. span: the range of values there is. */
export function drag(window: Window, dx: number, dy: number, span: number): Window {
  const step = span / 800;
  return { center: window.center + dy * step, width: Math.max(2, window.width + dx * step) };
}

/** Narrower or wider about the same centre. */
export function widen(window: Window, factor: number): Window {
  return { center: window.center, width: Math.max(2, window.width * factor) };
}

/** Where a file gives no window: between the 1st and 99.8th percentile of what is not background, in modality values. */
export function windowOf(values: ArrayLike<number>, rescale: Rescale): Window {
  let lowest = Number.POSITIVE_INFINITY;
  let highest = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < values.length; i++) {
    const value = values[i] ?? 0;
    if (value < lowest) lowest = value;
    if (value > highest) highest = value;
  }
  if (!(highest > lowest)) return { center: (lowest || 0) * rescale.slope + rescale.intercept + 1, width: 2 }; // black
  const counts = new Float64Array(highest - lowest + 1);
  for (let i = 0; i < values.length; i++) {
    const at = (values[i] ?? 0) - lowest;
    counts[at] = (counts[at] ?? 0) + 1;
  }
  counts[0] = 0;
  counts[counts.length - 1] = 0;
  const total = counts.reduce((sum, n) => sum + n, 0);
  const low = total === 0 ? 0 : quantile(counts, total * 0.01);
  const high = total === 0 ? counts.length - 1 : quantile(counts, total * 0.998);
  const ends = [low + lowest, Math.max(high, low + 1) + lowest].map((v) => v * rescale.slope + rescale.intercept);
  const [a, b] = [Math.min(...ends), Math.max(...ends)];
  return { center: (a + b + 1) / 2, width: Math.max(2, b - a + 1) };
}

function quantile(counts: Float64Array, wanted: number): number {
  let sum = 0;
  for (let i = 0; i < counts.length; i++) {
    sum += counts[i] ?? 0;
    if (sum >= wanted) return i;
  }
  return counts.length - 1;
}

/** Whether low values are drawn white: those of MONOCHROME1 are, and the reader may turn it round. */
export function isInverted(photometric: string, byReader: boolean): boolean {
  return (photometric === 'MONOCHROME1') !== byReader;
}
