import { describe, expect, it } from 'vitest';
import {
  fitted,
  levelFor,
  levelSize,
  lookAt,
  type Point,
  pan,
  pixelAt,
  scaleBar,
  smallestAt,
  toImage,
  toScreen,
  type View,
  zoomAt,
} from '../src/geometry';

const IMAGE = { width: 3328, height: 4084 };
const PANE = { width: 450, height: 400 };
const VIEWS: View[] = [
  { scale: 0.125, x: 1664, y: 2042, mirrored: false },
  { scale: 3.5, x: 12.25, y: 4000.75, mirrored: false },
  { scale: 0.7, x: 900, y: 100, mirrored: true },
];

describe('the edge frame', () => {
  it('puts the image corner, not the centre of its first pixel, at the corner of the pane', () => {
    const view = { scale: 2, x: 225 / 2, y: 200 / 2, mirrored: false };
    expect(toScreen(view, PANE, [0, 0])).toEqual([0, 0]);
    expect(toScreen(view, PANE, [1, 1])).toEqual([2, 2]);
    expect(toImage(view, PANE, [1, 1])).toEqual([0.5, 0.5]);
  });

  it('gives the first pixel to everything from its left edge up to its right one', () => {
    expect(pixelAt([0, 0], IMAGE)).toEqual({ column: 0, row: 0 });
    expect(pixelAt([0.999, 0.999], IMAGE)).toEqual({ column: 0, row: 0 });
    expect(pixelAt([1, 2], IMAGE)).toEqual({ column: 1, row: 2 });
    expect(pixelAt([3327.99, 4083.99], IMAGE)).toEqual({ column: 3327, row: 4083 });
    expect(pixelAt([3328, 0], IMAGE)).toBeNull();
    expect(pixelAt([-0.001, 0], IMAGE)).toBeNull();
  });

  it('comes back from the screen to the same point', () => {
    for (const view of VIEWS) {
      for (const point of [
        [0, 0],
        [3328, 4084],
        [17.25, 2999.5],
      ] as Point[]) {
        const [x, y] = toImage(view, PANE, toScreen(view, PANE, point));
        expect(x).toBeCloseTo(point[0], 9);
        expect(y).toBeCloseTo(point[1], 9);
      }
    }
  });

  it('swaps left and right alone where it mirrors', () => {
    const plain: View = { scale: 0.1, x: 1664, y: 2042, mirrored: false };
    const [x, y] = toScreen(plain, PANE, [1000, 500]);
    expect(toScreen({ ...plain, mirrored: true }, PANE, [3328 - 1000, 500])).toEqual([x, y]);
  });
});

describe('fitting', () => {
  it('shows the whole image, chest wall at the side asked for', () => {
    const edges = (view: View) => [toScreen(view, PANE, [0, 0]), toScreen(view, PANE, [IMAGE.width, IMAGE.height])];
    const [left, right] = [fitted(IMAGE, PANE, 'left'), fitted(IMAGE, PANE, 'right')];
    expect(edges(left)[0]?.[0]).toBeCloseTo(0, 9);
    expect(edges(right)[1]?.[0]).toBeCloseTo(PANE.width, 9);
    for (const view of [left, right, fitted(IMAGE, PANE)]) {
      expect(edges(view)[0]?.[1]).toBeCloseTo(0, 9);
      expect(edges(view)[1]?.[1]).toBeCloseTo(PANE.height, 9);
    }
  });

  it('puts the edge of a mirrored image at the side asked for', () => {
    const view = fitted(IMAGE, PANE, 'right', true);
    expect(toScreen(view, PANE, [0, 0])[0]).toBeCloseTo(PANE.width, 9);
  });

  it('is limited by the width of a narrow pane', () => {
    const view = fitted(IMAGE, { width: 100, height: 1000 });
    expect(view.scale).toBeCloseTo(100 / 3328, 12);
  });
});

describe('moving', () => {
  it('keeps what is under the pointer there while zooming', () => {
    for (const view of VIEWS) {
      const at: Point = [250, 180];
      const before = toImage(view, PANE, at);
      const after = toImage(zoomAt(view, IMAGE, PANE, at, 1.3), PANE, at);
      expect(after[0]).toBeCloseTo(before[0], 6);
      expect(after[1]).toBeCloseTo(before[1], 6);
    }
  });

  it('moves the image with the pointer, mirrored or not', () => {
    for (const mirrored of [false, true]) {
      const view: View = { scale: 0.5, x: 1000, y: 1000, mirrored };
      const [x, y] = toScreen(view, PANE, [990, 1010]);
      expect(toScreen(pan(view, IMAGE, 10, -4), PANE, [990, 1010])).toEqual([x + 10, y - 4]);
    }
  });

  it('cannot lose the image', () => {
    const view = pan(fitted(IMAGE, PANE), IMAGE, 1e6, -1e6);
    expect([view.x, view.y]).toEqual([0, IMAGE.height]);
  });

  it('puts a lesion in the middle, large, but no smaller than the whole image', () => {
    const view = lookAt(false, IMAGE, PANE, [1000, 2000, 1200, 2100]);
    expect(toScreen(view, PANE, [1100, 2050])).toEqual([225, 200]);
    expect((1200 - 1000) * view.scale).toBeCloseTo(0.35 * 450, 9);
    expect(lookAt(false, IMAGE, PANE, [0, 0, 3328, 4084]).scale).toBe(fitted(IMAGE, PANE).scale);
  });
});

describe('levels', () => {
  it('are as coarse as they can be with a value for each device pixel', () => {
    expect(levelFor(1, 1, 4)).toBe(0);
    expect(levelFor(0.51, 1, 4)).toBe(0);
    expect(levelFor(0.5, 1, 4)).toBe(1);
    expect(levelFor(0.125, 1, 4)).toBe(3);
    expect(levelFor(0.125, 2, 4)).toBe(2);
    expect(levelFor(0.01, 1, 4)).toBe(4);
    expect(levelFor(8, 1, 4)).toBe(0);
  });

  it('round odd sizes up', () => {
    expect(levelSize({ width: 5, height: 9 }, 1)).toEqual({ width: 3, height: 5 });
    expect(levelSize({ width: 5, height: 9 }, 2)).toEqual({ width: 2, height: 3 });
  });
});

describe('what lies under the pointer', () => {
  it('is the smallest box that holds it, its right and lower edges apart', () => {
    const [large, small] = [{ box_xyxy: [0, 0, 10, 10] as const }, { box_xyxy: [4, 4, 6, 6] as const }];
    expect(smallestAt([5, 5], [large, small])).toBe(small);
    expect(smallestAt([6, 5], [small, large])).toBe(large);
    expect(smallestAt([10, 5], [large, small])).toBeNull();
  });
});

describe('the scale bar', () => {
  it('is the longest round length that fits', () => {
    expect(scaleBar(0.125, 0.07, 160)).toEqual({ css: (50 * 0.125) / 0.07, label: '50 mm' });
    expect(scaleBar(1, 0.07, 160).label).toBe('10 mm');
    expect(scaleBar(2, null, 160)).toEqual({ css: 100, label: '50 px' });
    for (const scale of [0.03, 0.2, 1.7, 9, 31]) {
      const { css } = scaleBar(scale, 0.085, 150);
      expect(css).toBeLessThanOrEqual(150 + 1e-6);
      expect(css).toBeGreaterThan(150 / 2.5 - 1e-6);
    }
  });
});
