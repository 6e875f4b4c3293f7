import { describe, expect, it } from 'vitest';
import { bounds, drag, isInverted, widen, windowOf } from '../src/window';

/** The linear function as DICOM PS3.3 C.11.2.1.2.1 writes it, to 0..255. */
function dicomLinear(x: number, c: number, w: number): number {
  if (x <= c - 0.5 - (w - 1) / 2) return 0;
  if (x > c - 0.5 + (w - 1) / 2) return 255;
  return ((x - (c - 0.5)) / (w - 1) + 0.5) * 255;
}

describe('the window', () => {
  it.each([
    [2048, 4096],
    [600.5, 333],
    [-20, 2],
    [32768, 65536],
  ])('of centre %d and width %d goes from black to white where DICOM does', (center, width) => {
    const { lower, upper } = bounds({ center, width });
    expect(dicomLinear(lower, center, width)).toBe(0);
    expect(dicomLinear(upper, center, width)).toBeCloseTo(255, 9);
    expect(dicomLinear((lower + upper) / 2, center, width)).toBeCloseTo(127.5, 9);
  });

  it('of 12 full bits has its bounds at the ends of the range', () => {
    expect(bounds({ center: 2048, width: 4096 })).toEqual({ lower: 0, upper: 4095 });
  });

  it('follows the mouse: right is wider, down is darker, never narrower than two values', () => {
    const window = { center: 2000, width: 1000 };
    expect(drag(window, 80, 40, 4000)).toEqual({ center: 2200, width: 1400 });
    expect(drag(window, -1e6, 0, 4000).width).toBe(2);
    expect(widen(window, 0.5)).toEqual({ center: 2000, width: 500 });
    expect(widen({ center: 0, width: 3 }, 0.1).width).toBe(2);
  });

  it('where the file gives none spans the tissue, not the background', () => {
    const values = Uint16Array.from({ length: 20000 }, (_, i) => (i < 10000 ? 0 : 1000 + ((i * 7919) % 2001)));
    const { lower, upper } = bounds(windowOf(values, { slope: 1, intercept: 0 }));
    expect(lower).toBeGreaterThan(1000);
    expect(lower).toBeLessThan(1050);
    expect(upper).toBeGreaterThan(2970);
    expect(upper).toBeLessThanOrEqual(3000);
  });

  it('is in modality values', () => {
    const values = Int16Array.from({ length: 1001 }, (_, i) => i - 500);
    const plain = windowOf(values, { slope: 1, intercept: 0 });
    const scaled = windowOf(values, { slope: 2, intercept: -7 });
    expect(scaled.width - 1).toBeCloseTo(2 * (plain.width - 1), 9);
    expect(bounds(scaled).lower).toBeCloseTo(2 * bounds(plain).lower - 7, 9);
  });

  it('of a blank image draws it black', () => {
    expect(bounds(windowOf(new Uint16Array(100).fill(7), { slope: 1, intercept: 0 })).lower).toBe(7);
  });
});

describe('inverting', () => {
  it('turns MONOCHROME1 round, and each of them once more when the reader asks', () => {
    expect(isInverted('MONOCHROME2', false)).toBe(false);
    expect(isInverted('MONOCHROME1', false)).toBe(true);
    expect(isInverted('MONOCHROME2', true)).toBe(true);
    expect(isInverted('MONOCHROME1', true)).toBe(false);
  });
});
